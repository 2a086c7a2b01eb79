"""Optimizers of PyTorch that communicate."""

from phalanx.optimizers.one_bit_adam import OneBitAdam

__all__ = ["OneBitAdam"]
