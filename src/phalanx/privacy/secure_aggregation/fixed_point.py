"""Fixed-point numbers, arithmetic and range checks modulo 2^64.

The ring is that of int64 tensors, which wrap around; torch does that exactly.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from phalanx.privacy.secure_aggregation.protocol import (
    NORM_BITS,
    NUM_SUMS,
    SEED_BYTES,
    WEIGHT_BITS,
    Entropy,
    SecureSetup,
    expand,
)

_FAR = 2.0**62  # beyond this a float64 may not fit into a word
_PRODUCT_COLUMNS = 1 << 11  # at a time: both factors stay in the cache
_SIGN_COLUMNS = 1 << 14  # whose signs are in memory at a time
_SUM_LIMIT = 20 << NORM_BITS
_NOISE_BITS = NORM_BITS + 3  # uniform on [-4 L, 4 L)


def require_encodable(message: Float[Tensor, " dim"], setup: SecureSetup) -> None:
    """Raises ValueError if the message has another length, is not finite, or is too long."""
    if len(message) != setup.dim:
        raise ValueError(f"message must have {setup.dim} numbers, got {len(message)}")
    norm = message.double().norm().item()
    if not norm < setup.max_norm:  # NaN included
        raise ValueError(
            f"message must be finite with a norm below {setup.max_norm:g}, got {norm:g}; "
            "clip it, or use fewer fraction_bits"
        )


def encode(message: Float[Tensor, "*shape"], setup: SecureSetup) -> Int64[Tensor, "*shape"]:
    """The nearest multiples of the unit, modulo 2^64."""
    return (message.double() / setup.unit).clamp(-_FAR, _FAR).round().long()


def decode(total: Int64[Tensor, " dim"], count: int, setup: SecureSetup) -> Float[Tensor, " dim"]:
    """The mean, in float64, from the sum of `count` messages."""
    return total.double() * (setup.unit / count)


def decode_squares(words: Int64[Tensor, "*shape"], setup: SecureSetup) -> Float[Tensor, "*shape"]:
    """Squared distances in float64; they are never negative, so the sign bit is one more digit."""
    return words.double().where(words >= 0, words.double() + 2.0**64) * setup.unit**2


def inner_products(
    left: Int64[Tensor, "left dim"], right: Int64[Tensor, "right dim"]
) -> Int64[Tensor, "left right"]:
    """Inner products of all rows on the left with all rows on the right, modulo 2^64."""
    total = left.new_zeros(len(left), len(right))
    for start in range(0, left.shape[1], _PRODUCT_COLUMNS):
        columns = slice(start, start + _PRODUCT_COLUMNS)
        total += left[:, columns] @ right[:, columns].T
    return total


def pair_distances(products: Int64[Tensor, "rows rows"]) -> Int64[Tensor, " pairs"]:
    """Squared distances from inner products, or shares of one from shares of the other.

    They are linear in the products: `q_ii + q_jj - q_ij - q_ji` for every pair `i < j`.
    """
    first, second = torch.triu_indices(len(products), len(products), offset=1)
    norms = products.diagonal()
    return norms[first] + norms[second] - products[first, second] - products[second, first]


def symmetric(pair_values: Tensor, num_rows: int) -> Tensor:
    """The symmetric matrix with these values above its diagonal, which is zero."""
    first, second = torch.triu_indices(num_rows, num_rows, offset=1)
    matrix = pair_values.new_zeros(num_rows, num_rows)
    matrix[first, second] = matrix[second, first] = pair_values
    return matrix


def integer_weights(
    weights: Float[Tensor, " workers"],
) -> tuple[Int64[Tensor, " workers"], int, int]:
    """Integers, a shift and a divisor: nearest to weights, of sum one, as `w / 2^shift / divisor`.

    Equal weights are ones and zeros, so that nothing is rounded; others have 24 bits after the
    point, and sum to exactly 2^24.

    >>> import torch
    >>> from phalanx.privacy.secure_aggregation.fixed_point import integer_weights
    >>> integer_weights(torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))
    (tensor([1, 0, 1]), 0, 2)
    """
    largest = weights.max()
    chosen = weights != 0
    if ((weights - largest).abs() <= 1e-9 * largest)[chosen].all():
        return chosen.long(), 0, int(chosen.sum())
    values = (weights * 2**WEIGHT_BITS).round().long()
    values[weights.argmax()] += 2**WEIGHT_BITS - values.sum()
    return values, WEIGHT_BITS, 1


def signed_sums(seed: bytes, rows: Int64[Tensor, "rows dim"]) -> Int64[Tensor, "rows sums"]:
    """Sums of every row with the signs that this seed stands for, modulo 2^64."""
    total = rows.new_zeros(len(rows), NUM_SUMS)
    for start in range(0, rows.shape[1], _SIGN_COLUMNS):
        block = rows[:, start : start + _SIGN_COLUMNS]
        total += inner_products(block, _signs(seed, f"signs {start}", block.shape[1]))
    return total


def sum_noise(entropy: Entropy, num_workers: int) -> Int64[Tensor, "workers sums"]:
    """The noise that the dealer adds to every sum."""
    words = expand(entropy(SEED_BYTES), "noise", num_workers, NUM_SUMS)
    return words >> (64 - _NOISE_BITS)


def in_range(sums: Int64[Tensor, "rows sums"]) -> Bool[Tensor, " rows"]:
    """Range check: whose sums are near to those of more than half of the rows, itself included.

    Distances are calculated modulo 2^64, and there a Byzantine message can be far away and look
    near: a message plus 2^63 in any coordinates has the same distance to everybody. No rule on
    distances can see that. So the worker server also learns 64 random sums of every message, with
    signs that it does not know, drowned in noise and less those of one of the messages. Who is too
    long sticks out in one of them. It does not matter what was subtracted from all.

    Let L = 2^`NORM_BITS` be the norm that honest messages stay below, and v the difference of two
    messages, modulo 2^64. A sum <z, v> has coefficients -1, 0, 1 with probabilities 1/4, 1/2, 1/4.

    - Honest: |v| < 2 L, and a sum is beyond 12 L with probability below 2 exp(-36).
    - If an entry of v is beyond 56 L, a sum is within 28 L with probability at most 1/2: two sums
      that differ by that entry cannot both be. All 64 are with probability at most 2^-64.
    - Otherwise sums do not wrap, and if |v| > 112 L, a sum is within 28 L with probability at most
      3/4 (Paley-Zygmund); all 64 are with probability below 1e-8.

    Noise of every sum is below 4 L in size. Two messages are near if all their sums, noise
    included, differ by less than 20 L. Who is near to more than half of the messages is near to an
    honest one, hence within 112 L of it, and any two such messages are within 226 L < 2^32: no
    distance wraps.

    Source: the sums with such coefficients are those of Rothblum, Omri, Chen, Talwar, "PINE:
    Efficient Verification of a Euclidean Norm Bound of a Secret-Shared Vector", USENIX Security
    2024; the use on pairs, the noise and the constants are our own.
    """
    apart = (sums - row for row in sums)  # not by abs(): -2^63 is its own absolute value
    near = torch.stack([((one > -_SUM_LIMIT) & (one < _SUM_LIMIT)).all(dim=1) for one in apart])
    return 2 * near.sum(dim=1) > len(sums)


def _signs(seed: bytes, label: str, dim: int) -> Int64[Tensor, "sums dim"]:
    """Coefficients -1, 0 and 1, with probabilities 1/4, 1/2 and 1/4."""
    count = 2 * NUM_SUMS * dim
    stream = hashlib.shake_128(seed + label.encode()).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count)
    added, taken = bits.astype(np.int8).reshape(2, NUM_SUMS, dim)
    return torch.from_numpy((added - taken).astype(np.int64))
