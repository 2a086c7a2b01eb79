"""Computations: what workers compute from parameters and samples: gradients, local steps."""

from phalanx.computations.base import Broadcast, Computation, Computed, Samples
from phalanx.computations.clipped_gradient import ClippedGradient
from phalanx.computations.gradient import Gradient
from phalanx.computations.local_steps import LocalSteps
from phalanx.computations.mixed_precision import MixedPrecision
from phalanx.computations.objective import Objective

__all__ = [
    "Broadcast",
    "ClippedGradient",
    "Computation",
    "Computed",
    "Gradient",
    "LocalSteps",
    "MixedPrecision",
    "Objective",
    "Samples",
]
