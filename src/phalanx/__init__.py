"""Phalanx: train PyTorch models on machines, networks, data and peers that you cannot fully trust."""

__version__ = "0.1.0"
