"""Gradient codes: redundant work that lets the server decode exact gradients and name the liars."""

from phalanx.coding.base import Code, Decoded
from phalanx.coding.draco_cyclic import DracoCyclic
from phalanx.coding.draco_repetition import DracoRepetition
from phalanx.coding.majority import equal_majority

__all__ = ["Code", "Decoded", "DracoCyclic", "DracoRepetition", "equal_majority"]
