"""Computations: what a worker computes from the parameters of a round and its samples."""

from phalanx.computations.base import Broadcast, Computation, Computed, Samples
from phalanx.computations.clipped_gradient import ClippedGradient
from phalanx.computations.gradient import Gradient
from phalanx.computations.local_steps import LocalSteps
from phalanx.computations.objective import Objective

__all__ = [
    "Broadcast",
    "ClippedGradient",
    "Computation",
    "Computed",
    "Gradient",
    "LocalSteps",
    "Objective",
    "Samples",
]
