"""One setting of threads and of hypothesis for every test."""

import os

# pytest-xdist fills the cores with processes; more threads in each only get in each other's way.
# The variable reaches the processes that tests start, the call this one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PHALANX_PROGRESS"] = "0"  # in the processes that tests start, too

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn
from torch.utils.data import TensorDataset

from phalanx.randomness import generator, seeded

torch.set_num_threads(1)

# No deadline: the first call into torch is slow. Derandomised: a failure is everybody's failure.
settings.register_profile(
    "phalanx",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("phalanx")


def pytest_addoption(parser):
    parser.addoption(
        "--write-golden", action="store_true", help="pin the golden runs as they are now"
    )


@pytest.fixture(scope="session")
def blobs():
    """600 points around 4 corners, to train on, and 200 to test on: learnt in a few rounds."""
    numbers = generator("blobs")
    corners = 3.0 * torch.randn(4, 6, generator=numbers)
    targets = torch.randint(4, (800,), generator=numbers)
    inputs = corners[targets] + torch.randn(800, 6, generator=numbers)
    return TensorDataset(inputs[:600], targets[:600]), TensorDataset(inputs[600:], targets[600:])


@pytest.fixture
def make_model():
    """A small network with the same first weights every time."""

    def make(*extra):
        with seeded(5, "weights"):
            return nn.Sequential(nn.Linear(6, 12), *extra, nn.ReLU(), nn.Linear(12, 4))

    return make


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all tests: engines use a connection that stands, and leave it standing."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=2**28,
        )
    yield ray
    ray.shutdown()
