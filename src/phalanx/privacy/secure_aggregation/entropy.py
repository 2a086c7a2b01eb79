"""Random words: from the operating system, or expanded from a seed that two parties know."""

import hashlib
import itertools
import math
import secrets
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.randomness import derive_seed

SEED_BYTES = 32
"""Length of a seed."""

Entropy = Callable[[int], bytes]
"""Gives as many random bytes as asked for."""

from_system: Entropy = secrets.token_bytes
"""What everybody uses whose messages are to stay secret."""


def repeatable(*names: int | str) -> Entropy:
    """The same bytes for the same names: for simulations and tests, where nothing is secret."""
    key = derive_seed(*names).to_bytes(8, "little")
    numbers = itertools.count()
    return lambda count: hashlib.shake_128(key + next(numbers).to_bytes(8, "little")).digest(count)


def expand(seed: bytes, label: str, *shape: int) -> Int64[Tensor, "*shape"]:
    """Words that nobody can tell from uniform ones without the seed.

    A pseudo-random generator fit for secrets (SHAKE-128), unlike `torch.Generator`. Labels keep
    apart what is made of one seed.

    Cost: about four nanoseconds a byte.
    """
    stream = hashlib.shake_128(seed + label.encode()).digest(8 * math.prod(shape))
    words = np.frombuffer(bytearray(stream), dtype="<i8").astype(np.int64, copy=False)
    return torch.as_tensor(words).reshape(shape)


def expand_signs(seed: bytes, label: str, rows: int, dim: int) -> Int64[Tensor, "rows dim"]:
    """-1, 0 and 1, with probabilities 1/4, 1/2 and 1/4."""
    stream = hashlib.shake_128(seed + label.encode()).digest(-(-2 * rows * dim // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=2 * rows * dim)
    added, taken = bits.astype(np.int8).reshape(2, rows, dim)
    return torch.from_numpy((added - taken).astype(np.int64))


def normal(entropy: Entropy, count: int) -> Float[Tensor, " count"]:
    """Standard normal numbers in float64, by the method of Box and Muller."""
    words = expand(entropy(SEED_BYTES), "normal", 2, count)
    uniform = (words.bitwise_and(2**53 - 1).double() + 0.5) / 2**53
    return (-2 * uniform[0].log()).sqrt() * (2 * math.pi * uniform[1]).cos()
