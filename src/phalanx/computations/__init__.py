"""Computations: what workers compute from parameters and samples: gradients, local steps."""

from phalanx.computations.base import Broadcast, Computation, Computed, Samples
from phalanx.computations.clipped_gradient import ClippedGradient
from phalanx.computations.clipped_update import ClippedUpdate
from phalanx.computations.gradient import Gradient
from phalanx.computations.local_steps import LocalSteps
from phalanx.computations.mixed_precision import MixedPrecision
from phalanx.computations.objective import Objective
from phalanx.computations.per_sample import PerSampleGradient
from phalanx.computations.top_agg_gradient import TopAggGradient

__all__ = [
    "Broadcast",
    "ClippedGradient",
    "ClippedUpdate",
    "Computation",
    "Computed",
    "Gradient",
    "LocalSteps",
    "MixedPrecision",
    "Objective",
    "PerSampleGradient",
    "Samples",
    "TopAggGradient",
]
