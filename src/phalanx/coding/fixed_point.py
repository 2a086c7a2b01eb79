"""Fixed-point numbers for messages that are computed with exactly.

A partition's gradient becomes whole numbers `round(g 2^k)`, those beyond `limit` in size cut down
to it. A header goes with them: how many were cut, and how large the largest was, as a one in the
row of counters for its power of two. Headers of partitions are added up as gradients are, so that
the server learns from their sum how far to move the binary point for the next round.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from phalanx.floats import working

LOWEST, _HIGHEST = -14, 16
"""Powers of two, relative to the limit, that are told apart."""

_SATURATED, _ZERO, _POWERS = 0, 1, 2  # places in a header: a number, a counter, the other counters

HEADER = _POWERS + _HIGHEST - LOWEST + 1
"""Numbers in a header."""

_HEADROOM = 4  # powers of two that gradients may grow by from one round to the next
_FIRST_RANGE = 6  # before the first round nothing is known: numbers up to 2^6 fit
MOST_BITS = 120
"""Most bits after, or before, the binary point: 2^120 is a number in float32."""


class Magnitudes(NamedTuple):
    """Magnitudes of partitions' gradients in a round, from the sum of their headers.

    Attributes:
        saturated: coordinates that did not fit.
        highest: the power of two, relative to the limit, below which all coordinates lie; None if
            all are zero.
        unbounded: whether some may lie above it.
    """

    saturated: int
    highest: int | None
    unbounded: bool


def first_bits(limit: int) -> int:
    """Bits after the binary point before anything is known of the gradients."""
    return int(math.log2(limit)) - _FIRST_RANGE


def next_bits(bits: int, seen: Magnitudes, *, first: bool) -> int:
    """Bits after the binary point in the next round.

    Numbers may be 16 times as large as the largest of this round. Room for larger ones is made at
    once, and given up by one place a round, unless this is the first round, or all are so small
    that it is not known how small.
    """
    if seen.highest is None:
        return bits
    wanted = bits - seen.highest - _HEADROOM
    at_once = first or seen.highest == LOWEST
    return max(-MOST_BITS, min(wanted if at_once else min(wanted, bits + 1), MOST_BITS))


def whole(
    gradients: Float[Tensor, "rows columns"], bits: int, limit: int
) -> Float[Tensor, "rows columns"]:
    """`round(g 2^bits)`, half to even, in float64, those beyond the limit cut down to it."""
    values = gradients.to(working(gradients.dtype), copy=True)
    return values.mul_(2.0**bits).round_().double().clamp_(-limit, limit)


def headers(
    gradients: Float[Tensor, "rows dim"], bits: int, limit: int
) -> tuple[Int64[Tensor, "rows header"], Bool[Tensor, " rows"]]:
    """Headers of gradients, on the CPU, and which gradients are finite. One pass over them."""
    found = torch.zeros(len(gradients), HEADER, dtype=torch.int64)
    finite = torch.ones(len(gradients), dtype=torch.bool)
    if gradients.shape[1] == 0:
        return found, finite
    for row, gradient in enumerate(gradients):
        low, high = gradient.aminmax()
        largest = max(-low.item(), high.item())
        if not math.isfinite(largest):
            finite[row] = False
            continue
        relative = largest * 2.0**bits / limit
        power = max(LOWEST, min(math.frexp(min(relative, 2.0**_HIGHEST))[1], _HIGHEST))
        found[row, _POWERS + power - LOWEST if largest > 0 else _ZERO] = 1
        if relative * limit >= limit + 0.5:
            cut = (gradient.double() * 2.0**bits).round_().abs_() > limit
            found[row, _SATURATED] = min(int(cut.sum()), limit)
    return found, finite


def magnitudes(total: Int64[Tensor, " header"]) -> Magnitudes:
    """What the sum of the headers of all partitions says."""
    counted = total[_POWERS:].nonzero().flatten().tolist()
    highest = LOWEST + counted[-1] if counted else None
    return Magnitudes(int(total[_SATURATED]), highest, highest == _HIGHEST)
