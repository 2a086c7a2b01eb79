"""Distributed noise: every client adds a share, so that a sum is private before anybody sees it."""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from phalanx.checks import require_at_least, require_finite_above
from phalanx.privacy.accountant import NOT_COUNTED as OUTSIDE
from phalanx.privacy.accountant import Accountant, require_delta
from phalanx.privacy.secure_aggregation.protocol import Entropy, system_entropy
from phalanx.privacy.secure_sum.keys import Stream

PIECES = 13
"""Multiples of the standard deviation up to which noise goes: beyond are fewer than 1e-36."""

NOT_COUNTED = (*OUTSIDE, "which clients take part")
"""What looks at clients beside the sums."""

_BLOCK = 1 << 14  # candidates at a time
_NEAR = 2.0**-46  # what floats leave undecided is decided by decimals


@dataclass(frozen=True)
class DistributedNoise:
    """Discrete Gaussian noise in shares, for sums that are private without trust in the server.

    Clients clip their update to `clip_norm` (L2), count alike, and add a discrete Gaussian each of
    standard deviation `noise_multiplier clip_norm / sqrt(lasting)`, where
    `lasting = threshold - num_colluding`. At least the threshold of clients are in a sum that is
    opened, so that its noise has standard deviation `noise_multiplier clip_norm` or more, without
    the shares that colluding clients know; with all n clients that is `sqrt(n / lasting)` as much.

    Guarantee: one sum is `1 / (2 noise_multiplier^2)`-zero-concentrated differentially private,
    where neighbours differ by the update of one client, which is zero in one of them, however many
    numbers it has: rounding is paid for by the clipping. The sum of discrete Gaussians is as
    private as one of the same variance up to `10 n exp(-pi^2 s^2)` (s: standard deviation of a
    share in units), below 1e-200 for the shares that are allowed. Drawing clients at random
    amplifies nothing: the server knows who takes part.
    Source: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated
    Learning with Secure Aggregation", ICML 2021; conversion: see `Accountant`.

    >>> from phalanx.privacy import DistributedNoise
    >>> round(DistributedNoise(clip_norm=1.0, noise_multiplier=10.0).epsilon(100, 1e-5), 2)
    4.73
    """

    clip_norm: float = 1.0
    """Longer updates are shortened to this norm (C)."""

    noise_multiplier: float = 1.0
    """Standard deviation of the sum's noise, in multiples of `clip_norm` (z)."""

    num_colluding: int = 0
    """Clients that may tell the server their share of the noise."""

    delta: float = 1e-5
    """Probability with which more may leak than the epsilon that a run tells; well below one over
    the number of clients."""

    def __post_init__(self) -> None:
        require_finite_above(0, clip_norm=self.clip_norm, noise_multiplier=self.noise_multiplier)
        require_delta(self.delta)
        require_at_least(0, num_colluding=self.num_colluding)

    def share_std(self, threshold: int) -> float:
        """Standard deviation of one client's share.

        Raises:
            ValueError: if as many clients collude as there may be in a sum.
        """
        if self.num_colluding >= threshold:
            raise ValueError(
                f"num_colluding must be below the threshold {threshold}, got {self.num_colluding}"
            )
        return self.noise_multiplier * self.clip_norm / math.sqrt(threshold - self.num_colluding)

    def epsilon(self, num_sums: int, delta: float) -> float:
        """Epsilon of so many sums, each of which a client may be in; see `accountant`.

        Raises:
            ValueError: if there is no sum, or delta is not at least 1e-10 and below 1.
        """
        require_at_least(1, num_sums=num_sums)
        accountant = self.accountant()
        accountant.compose(self.noise_multiplier, steps=num_sums)
        return accountant.epsilon(delta)

    def accountant(self) -> Accountant:
        """An empty ledger of sums, by Renyi divergences, which hold for discrete noise, too."""
        return Accountant("client's updates", method="rdp", not_counted=NOT_COUNTED)


def discrete_gaussian(
    std: float, size: int, entropy: Entropy = system_entropy
) -> Int64[Tensor, " size"]:
    """Whole numbers x with probabilities in proportion to `exp(-x^2 / (2 std^2))`.

    By rejection, from pieces that are uniform; randomness is the key stream of AES under a key
    from `entropy`. Numbers are exact, and so are probabilities up to 2^-60 in total variation: what
    float64 cannot decide is decided by decimals of 60 digits. There is nothing beyond
    `PIECES ceil(std)`.

    Args:
        std: below 2^48. The variance is `std^2` up to 1e-8 for std of 2 and above.
        size: how many.
        entropy: the source of the key.

    Cost: about 0.2 microseconds a number.
    Source: the distribution is that of Canonne, Kamath and Steinke, "The Discrete Gaussian for
    Differential Privacy", NeurIPS 2020; the way to draw from it is our own.
    """
    require_finite_above(0, std=std)
    if std >= 2.0**48:
        raise ValueError(f"std must be below 2^48, got {std}")
    width = math.ceil(std)
    stream, table = Stream(entropy(32)), _table(std, width)
    found: list[Any] = []
    missing = size
    while missing > 0:
        drawn = _candidates(stream, std, width, table)[:missing]
        found.append(drawn)
        missing -= len(drawn)
    return torch.from_numpy(np.concatenate(found) if found else np.zeros(0, dtype=np.int64))


def _candidates(stream: Stream, std: float, width: int, table: Any) -> Any:
    """Some numbers of the distribution, from `_BLOCK` candidates."""
    piece = np.searchsorted(table, stream.words(_BLOCK, np.uint64), side="right")
    mask = (1 << (width - 1).bit_length()) - 1
    words = stream.words(_BLOCK, np.uint64)
    negative = (words >> np.uint64(63)).astype(bool)
    offset = (words & np.uint64(mask)).astype(np.int64)
    coin = (stream.words(_BLOCK, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    start = piece.astype(np.int64) * width
    exponent = offset.astype(np.float64) * (2.0 * start + offset) / (2.0 * std * std)
    chance = np.exp(-exponent)
    accepted = coin < chance
    # A coin has 53 bits; where the rest of them, or the rounding of the chance, may matter:
    for place in np.flatnonzero(np.abs(coin - chance) < _NEAR):
        more = int(stream.words(1, np.uint64)[0])
        accepted[place] = _decided(float(coin[place]), more, int(start[place]), offset[place], std)
    inside = (offset < width) & (piece < PIECES)
    values = np.where(negative, -(start + offset), start + offset)
    twice = negative & (values == 0)  # zero would come with both signs
    return values[accepted & inside & ~twice]


def _decided(coin: float, more: int, start: int, offset: Any, std: float) -> bool:
    """Whether a coin of 117 bits is below the chance."""
    with localcontext() as context:
        context.prec = 60
        far = Decimal(int(offset)) * (2 * start + int(offset)) / (2 * Decimal(std) ** 2)
        exact = Decimal(coin) + Decimal(more) / Decimal(2) ** 117
        return exact < (-far).exp()


def _table(std: float, width: int) -> Any:
    """Cumulative bounds of the pieces, as words: piece k is drawn where a word is below entry k."""
    with localcontext() as context:
        context.prec = 60
        ratio = Decimal(width) ** 2 / (2 * Decimal(std) ** 2)
        bounds = [(-(ratio * k * k)).exp() for k in range(PIECES)]
        total, ends, whole = sum(bounds), [], Decimal(0)
        for bound in bounds:
            whole += bound
            ends.append(min(int(whole / total * 2**64), 2**64 - 1))
    return np.array(ends, dtype=np.uint64)
