"""Gradient codes: redundant work that lets the server decode exact gradients and name the liars."""

from phalanx.coding.base import Code, Decoded
from phalanx.coding.draco_cyclic import DracoCyclic

__all__ = ["Code", "Decoded", "DracoCyclic"]
