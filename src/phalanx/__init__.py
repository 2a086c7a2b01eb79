"""Phalanx: train PyTorch models on machines, networks and peers that you cannot fully trust."""

__version__ = "0.1.0"

from phalanx.federated import federate
from phalanx.training import Run, train

__all__ = ["Run", "federate", "train"]
