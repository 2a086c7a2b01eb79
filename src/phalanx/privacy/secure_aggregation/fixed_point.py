"""From real numbers to whole ones modulo 2^64, and back."""

from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.privacy.secure_aggregation.setup import SecureSetup

_FAR = 2.0**62  # beyond this a float64 may not fit into a word


def encode(message: Float[Tensor, " dim"], setup: SecureSetup) -> Int64[Tensor, " dim"]:
    """The nearest multiples of the unit.

    Raises:
        ValueError: if the message has another length, is not finite, or is too long.
    """
    if len(message) != setup.dim:
        raise ValueError(f"message must have {setup.dim} numbers, got {len(message)}")
    norm = message.double().norm().item()
    if not norm < setup.max_norm:  # NaN included
        raise ValueError(
            f"message must be finite with a norm below {setup.max_norm:g}, got {norm:g}; "
            "clip it, or use fewer fraction_bits"
        )
    return encode_unchecked(message, setup)


def encode_unchecked(
    message: Float[Tensor, "*shape"], setup: SecureSetup
) -> Int64[Tensor, "*shape"]:
    """The nearest multiples of the unit, modulo 2^64: what a client sends that checks nothing."""
    return (message.double() / setup.unit).clamp(-_FAR, _FAR).round().long()


def decode(total: Int64[Tensor, " dim"], count: int, setup: SecureSetup) -> Float[Tensor, " dim"]:
    """The mean, in float64, from the sum of `count` messages."""
    return total.double() * (setup.unit / count)


def decode_squares(words: Int64[Tensor, "*shape"], setup: SecureSetup) -> Float[Tensor, "*shape"]:
    """Squared distances in float64; they are never negative, so the sign bit is one more digit."""
    return words.double().where(words >= 0, words.double() + 2.0**64) * setup.unit**2
