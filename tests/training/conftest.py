import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from phalanx.randomness import generator, seeded


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
