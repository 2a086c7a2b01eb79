"""Whether masked messages are as short as they must be.

Distances are calculated modulo 2^64, and there a liar can be far away and look near: a message plus
2^63 in any coordinates has the same distance to everybody. No rule on distances can see that. So
the worker server also learns 64 random sums of every message, with signs that it does not know,
drowned in noise and less those of one of the messages. Who is too long sticks out in one of them.

Let L = 2^`NORM_BITS` be the norm that honest messages stay below, and v the difference of two
messages, modulo 2^64. A sum <z, v> has coefficients -1, 0, 1 with probabilities 1/4, 1/2, 1/4.

- Honest: |v| < 2 L, and a sum is beyond 12 L with probability below 2 exp(-36).
- If an entry of v is beyond 56 L, a sum is within 28 L with probability at most 1/2: two sums that
  differ by that entry cannot both be. All 64 are with probability at most 2^-64.
- Otherwise sums do not wrap, and if |v| > 112 L, a sum is within 28 L with probability at most
  3/4 (Paley-Zygmund); all 64 are with probability below 1e-8.

Noise of every sum is below 4 L in size. Two messages are near if all their sums, noise included,
differ by less than 20 L. Who is near to more than half of the messages is near to an honest one,
hence within 112 L of it, and any two such messages are within 226 L < 2^32: no distance wraps.

Source: the sums with such coefficients are those of Rothblum, Omri, Chen, Talwar, "PINE: Efficient
Verification of a Euclidean Norm Bound of a Secret-Shared Vector", USENIX Security 2024; the use on
pairs, the noise and the constants are our own.
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from phalanx.privacy.secure_aggregation.entropy import SEED_BYTES, Entropy, expand, expand_signs
from phalanx.privacy.secure_aggregation.ring import products
from phalanx.privacy.secure_aggregation.setup import NORM_BITS

NUM_SUMS = 64
"""Random sums of every message."""

_LIMIT = 20 << NORM_BITS
_WIDTH = 1 << 14  # columns whose signs are in memory at a time
_NOISE_BITS = NORM_BITS + 3  # uniform on [-4 L, 4 L)


def signed_sums(seed: bytes, rows: Int64[Tensor, "rows dim"]) -> Int64[Tensor, "rows sums"]:
    """Sums of every row with the signs that this seed stands for, modulo 2^64."""
    total = rows.new_zeros(len(rows), NUM_SUMS)
    for start in range(0, rows.shape[1], _WIDTH):
        block = rows[:, start : start + _WIDTH]
        signs = expand_signs(seed, f"signs {start}", NUM_SUMS, block.shape[1])
        total += products(block, signs)
    return total


def noise(entropy: Entropy, num_workers: int) -> Int64[Tensor, "workers sums"]:
    """What the dealer adds to every sum."""
    words = expand(entropy(SEED_BYTES), "noise", num_workers, NUM_SUMS)
    return words >> (64 - _NOISE_BITS)


def in_range(sums: Int64[Tensor, "rows sums"]) -> Bool[Tensor, " rows"]:
    """Whose sums are near to those of more than half of the rows, itself among them.

    Differences are taken modulo 2^64, so that it does not matter what was subtracted from all.
    """
    apart = (sums - row for row in sums)  # not by abs(): -2^63 is its own absolute value
    near = torch.stack([((one > -_LIMIT) & (one < _LIMIT)).all(dim=1) for one in apart])
    return 2 * near.sum(dim=1) > len(sums)
