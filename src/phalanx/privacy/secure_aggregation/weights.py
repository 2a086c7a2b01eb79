"""A rule's weights as whole numbers."""

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

WEIGHT_BITS = 24
"""Bits after the point of weights that differ."""


class WholeWeights(NamedTuple):
    """Weights that are `values / 2^shift / divisor`.

    Equal weights are ones and zeros, so that nothing is rounded; others have 24 bits after the
    point, and sum to exactly 2^24.
    """

    values: Int64[Tensor, " workers"]
    shift: int
    divisor: int


def whole(weights: Float[Tensor, " workers"]) -> WholeWeights:
    """The nearest whole weights, for weights that sum to one.

    >>> import torch
    >>> from phalanx.privacy.secure_aggregation.weights import whole
    >>> whole(torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))
    WholeWeights(values=tensor([1, 0, 1]), shift=0, divisor=2)
    """
    largest = weights.max()
    chosen = weights != 0
    if ((weights - largest).abs() <= 1e-9 * largest)[chosen].all():
        return WholeWeights(chosen.long(), 0, int(chosen.sum()))
    values = (weights * 2**WEIGHT_BITS).round().long()
    values[weights.argmax()] += 2**WEIGHT_BITS - values.sum()
    return WholeWeights(values, WEIGHT_BITS, 1)
