"""Federations on Flower: server and nodes are processes of their own, with TLS and known keys."""

from phalanx.federated.flower.app import as_flower
from phalanx.federated.flower.in_process_grid import (
    InProcessGrid,
    delayed,
    disconnected,
    nothing,
    run_in_process,
)

__all__ = [
    "InProcessGrid",
    "as_flower",
    "delayed",
    "disconnected",
    "nothing",
    "run_in_process",
]
