"""Computations: what a worker computes from parameters and samples."""

__all__ = []
