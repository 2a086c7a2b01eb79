"""Gradient codes: redundant work that lets the server decode gradients and name the liars."""

from phalanx.coding.base import Code, Decoded
from phalanx.coding.detox import Detox
from phalanx.coding.draco_cyclic import DracoCyclic
from phalanx.coding.draco_repetition import DracoRepetition

__all__ = ["Code", "Decoded", "Detox", "DracoCyclic", "DracoRepetition"]
