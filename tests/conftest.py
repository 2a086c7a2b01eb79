"""One setting of threads and of hypothesis for every test."""

import os

# pytest-xdist fills the cores with processes; more threads in each only get in each other's way.
# The variable reaches the processes that tests start, the call this one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import HealthCheck, settings

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
