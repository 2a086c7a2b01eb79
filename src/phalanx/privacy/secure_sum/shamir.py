"""Shamir's secret sharing over a prime field: any `threshold` shares give a secret, fewer nothing.

Source: Shamir, "How to Share a Secret", Communications of the ACM 22, 1979.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from phalanx.privacy.secure_aggregation.protocol import Entropy, system_entropy

PRIME = 2**256 + 297
"""The field's size: a prime above all secrets of 32 bytes."""

SECRET_BYTES = 32
"""Length of a secret."""

SHARE_BYTES = 33
"""Length of a share."""


def split_secret(
    secret: bytes, threshold: int, num_shares: int, entropy: Entropy = system_entropy
) -> list[bytes]:
    """Shares of a secret: values of a random polynomial at 1, 2, ..., whose value at 0 it is.

    Cost: `threshold num_shares` products of 257 bits.

    Raises:
        ValueError: if the secret has not 32 bytes, or there are fewer shares than the threshold.

    >>> from phalanx.privacy.secure_sum.shamir import combine_shares, split_secret
    >>> shares = split_secret(bytes(range(32)), threshold=2, num_shares=3)
    >>> combine_shares({0: shares[0], 2: shares[2]}) == bytes(range(32))
    True
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret must have {SECRET_BYTES} bytes, got {len(secret)}")
    if not 1 <= threshold <= num_shares:
        raise ValueError(f"threshold must be from 1 to the {num_shares} shares, got {threshold}")
    # 48 bytes modulo the prime: within 2^-127 of uniform.
    drawn = [int.from_bytes(entropy(48), "little") % PRIME for _ in range(threshold - 1)]
    coefficients = [*drawn, int.from_bytes(secret, "little")]
    shares = []
    for point in range(1, num_shares + 1):
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "little"))
    return shares


def combine_shares(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret, from shares by their places, counted from 0: exactly as many as the threshold.

    From more shares of one polynomial the same; from fewer, or from wrong ones, anything, or None
    if it is no secret.
    """
    places = sorted(shares)
    factors = _at_zero(tuple(places))
    values = [int.from_bytes(shares[place], "little") for place in places]
    secret = sum(f * value for f, value in zip(factors, values, strict=True)) % PRIME
    return secret.to_bytes(SECRET_BYTES, "little") if secret < 2 ** (8 * SECRET_BYTES) else None


@lru_cache(maxsize=256)
def _at_zero(places: Sequence[int]) -> tuple[int, ...]:
    """Lagrange's factors: the value at zero from values at these places."""
    factors = []
    for place in places:
        above, below = 1, 1
        for other in places:
            if other != place:
                above = above * (other + 1) % PRIME
                below = below * (other - place) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(factors)
