"""Gaussian noise from a cryptographic source, on a grid that shows nothing of floating point."""

import hashlib
import math
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.privacy.secure_aggregation.protocol import expand
from phalanx.privacy.secure_sum.keys import Stream, digest

GRID = 2.0**-10
"""Share of the sensitivity that rounding to the grid may add to it, over all coordinates."""

SLACK = 2.0**-9
"""Share by which noise is larger than asked for: for the grid, and as much for float32 sums."""

_PAIRS = 1 << 14  # of words, that are 256 KiB


def standard_normal(seed: bytes, label: str, count: int) -> Float[Tensor, " count"]:
    """Standard normal numbers in float64, by the method of Box and Muller.

    From the key stream of AES-256 in counter mode where `cryptography` is installed, else from
    SHAKE-128 of the seed; these are other numbers. Who does not know the seed cannot tell them from
    random ones. None is beyond 8.7, which happens with a probability of 1e-17 each.

    Cost: 8 pseudo-random bytes each; about 10 nanoseconds, and 30 more without `cryptography`.
    """
    blocks = aes_blocks if noise_source() == "AES-256" else shake_blocks
    return torch.cat([box_muller(one) for one in blocks(seed, label, (count + 1) // 2)])[:count]


def noise_source() -> str:
    """Which cipher the numbers come from here: other numbers elsewhere, of the same law."""
    return "AES-256" if find_spec("cryptography") else "SHAKE-128"


def aes_blocks(seed: bytes, label: str, pairs: int) -> Iterator[Int64[Tensor, "2 some"]]:
    """Pairs of words of a key stream, some at a time, so that they stay in the cache.

    Raises:
        ImportError: if `cryptography` is not installed.
    """
    stream = Stream(digest(seed, label.encode()))
    sizes = [min(_PAIRS, pairs - start) for start in range(0, max(pairs, 1), _PAIRS)]
    words = (stream.words(2 * size, np.int64).astype(np.int64) for size in sizes)
    return (torch.from_numpy(one).reshape(2, -1) for one in words)


def shake_blocks(seed: bytes, label: str, pairs: int) -> Iterator[Int64[Tensor, "2 some"]]:
    """Pairs of words of SHAKE-128, all at once."""
    return iter([expand(seed, label, 2, pairs)])


def box_muller(words: Int64[Tensor, "2 pairs"]) -> Float[Tensor, " numbers"]:
    """Two standard normal numbers for each pair of uniform words, of which 53 bits count."""
    uniform = words.bitwise_and(2**53 - 1).double().add_(0.5).mul_(2.0**-53)
    radius, angle = uniform[0].log_().mul_(-2).sqrt_(), uniform[1].mul_(2 * math.pi)
    return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)])


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
    noise = standard_normal(seed, label, values.numel()).mul_(std * (1 + SLACK) / grid).round_()
    whole = values.detach().to("cpu", torch.float64, copy=True).mul_(1 / grid).round_()
    return whole.add_(noise).mul_(grid).to(values)
