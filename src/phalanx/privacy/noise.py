"""Gaussian noise from a cryptographic source, on a grid that shows nothing of floating point."""

import hashlib
import math

from jaxtyping import Float
from torch import Tensor

from phalanx.privacy.secure_aggregation.protocol import expand

GRID = 2.0**-10
"""Share of the sensitivity that rounding to the grid may add to it, over all coordinates."""

SLACK = 2.0**-9
"""Share by which noise is larger than asked for: for the grid, and as much for float32 sums."""


def standard_normal(seed: bytes, label: str, count: int) -> Float[Tensor, " count"]:
    """Standard normal numbers in float64, by the method of Box and Muller.

    From SHAKE-128 of the seed: who does not know it cannot tell them from random ones. None is
    beyond 8.7, which happens with a probability of 1e-17 each.

    Cost: 16 pseudo-random bytes each.
    """
    words = expand(seed, label, 2, count)
    uniform = (words.bitwise_and(2**53 - 1).double() + 0.5) / 2**53
    return (-2 * uniform[0].log()).sqrt() * (2 * math.pi * uniform[1]).cos()


def noise_key(seed: int) -> bytes:
    """The key of all noise of a run, 32 bytes, from its seed: as secret as that is."""
    return hashlib.blake2b(str(seed).encode(), digest_size=32).digest()


def with_noise(
    values: Float[Tensor, " dim"], std: float, sensitivity: float, seed: bytes, label: str
) -> Float[Tensor, " dim"]:
    """Values with Gaussian noise, safe from attacks on floating-point arithmetic.

    Values and noise are rounded to multiples of one power of two and added as whole numbers, which
    float64 does exactly. So the result is the rounded sum of a rounded value and a Gaussian number,
    and which floats can be reached says nothing about the value (as it does where floats are added:
    Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012).
    Rounding lengthens the difference of two values by `GRID` of the sensitivity at most; the noise
    is larger by `SLACK` in return. The time it takes does not depend on the values.

    With `std` zero the values are returned as they are.

    Args:
        values: at most 2^40 times the sensitivity each.
        std: of the noise on each number.
        sensitivity: Euclidean, of the values.
        seed: at least 16 bytes that nobody else knows, for this purpose alone.
        label: of the release: one seed and label make the same noise.
    """
    if not std:
        return values
    grid = 2.0 ** math.floor(math.log2(sensitivity * GRID / math.sqrt(max(values.numel(), 1))))
    noise = std * (1 + SLACK) * standard_normal(seed, label, values.numel())
    whole = (values.detach().double().cpu() / grid).round() + (noise / grid).round()
    return (whole * grid).to(values)
