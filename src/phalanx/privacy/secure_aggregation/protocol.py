"""Public parameters and shared pseudo-randomness of the secure aggregation protocol."""

import hashlib
import itertools
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from phalanx.errors import ReusedRandomnessError
from phalanx.randomness import derive_seed

NORM_BITS = 24
"""Fixed-point messages are shorter than two to this, so that no distance wraps around: see
`fixed_point.in_range`."""

NUM_SUMS = 64
"""Random sums of every message in the range check."""

WEIGHT_BITS = 24
"""Bits after the point of weights that differ."""

SEED_BYTES = 32
"""Length of a seed."""

Entropy = Callable[[int], bytes]
"""A source of as many random bytes as asked for."""

system_entropy: Entropy = secrets.token_bytes
"""The source for everybody whose messages are to stay secret."""


@dataclass(frozen=True)
class SecureSetup:
    """Public parameters of secure aggregation: sizes of messages, and their fixed-point format.

    Numbers are multiples of `unit`, kept modulo 2^64. Messages must be shorter than `max_norm`:
    then squared distances fit, even between Byzantine messages that pass the range check.
    """

    num_workers: int = 10
    """Workers that have an id, from 0 on; not all of them need to take part in a round (n)."""

    dim: int = 1
    """Numbers in a message (d)."""

    fraction_bits: int = 16
    """Bits after the point: the more of them, the finer the numbers and the shorter the messages
    that are allowed."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")
        if self.dim < 0:
            raise ValueError(f"dim must be at least 0, got {self.dim}")
        if not 1 <= self.fraction_bits <= NORM_BITS:
            raise ValueError(
                f"fraction_bits must be from 1 to {NORM_BITS}, got {self.fraction_bits}"
            )

    @property
    def unit(self) -> float:
        """The distance between neighbouring numbers."""
        return 2.0**-self.fraction_bits

    @property
    def max_norm(self) -> float:
        """The Euclidean norm that messages must stay below: 256 with 16 bits after the point."""
        return 2.0 ** (NORM_BITS - self.fraction_bits)

    def has(self, worker: int) -> bool:
        """Whether a worker has this id."""
        return 0 <= worker < self.num_workers


class RoundLedger:
    """Record of the rounds whose randomness is spent: masks of two messages hide neither.

    >>> from phalanx.privacy import RoundLedger
    >>> ledger = RoundLedger()
    >>> ledger.spend(4)
    >>> ledger.spend(4)
    Traceback (most recent call last):
    phalanx.errors.ReusedRandomnessError: rounds must go up, so that no mask is used twice; ...
    """

    def __init__(self, last: int = -1) -> None:
        self.last = last

    def spend(self, round: int) -> None:
        """Marks a round and all before it as spent.

        Raises:
            ReusedRandomnessError: if it is spent already.
        """
        if round <= self.last:
            raise ReusedRandomnessError(
                f"rounds must go up, so that no mask is used twice; got {round} after {self.last}"
            )
        self.last = round


def seeded_entropy(*names: int | str) -> Entropy:
    """A source of the same bytes for the same names: for simulations and tests, not for secrets."""
    key = derive_seed(*names).to_bytes(8, "little")
    numbers = itertools.count()
    return lambda count: hashlib.shake_128(key + next(numbers).to_bytes(8, "little")).digest(count)


def expand(seed: bytes, label: str, *shape: int) -> Int64[Tensor, "*shape"]:
    """Words that nobody can tell from uniform ones without the seed.

    A pseudo-random generator fit for secrets (SHAKE-128), unlike `torch.Generator`. Labels keep
    apart what is made of one seed.

    Cost: about four nanoseconds per byte.
    """
    stream = hashlib.shake_128(seed + label.encode()).digest(8 * math.prod(shape))
    words = np.frombuffer(bytearray(stream), dtype="<i8").astype(np.int64, copy=False)
    return torch.as_tensor(words).reshape(shape)


def mask_shares(seed: bytes, setup: SecureSetup) -> Int64[Tensor, "workers dim"]:
    """A server's shares of the masks of all workers."""
    shares = torch.empty(setup.num_workers, setup.dim, dtype=torch.int64)
    for worker, row in enumerate(shares):
        row.copy_(expand(seed, f"mask {worker}", setup.dim))
    return shares


def dealt_words(seed: bytes, name: str, setup: SecureSetup) -> Int64[Tensor, "..."]:
    """Words that a server expands from its seed of the dealer, by name.

    Of the model server, shares: of the masks' inner `products` (n, n), of their random `sums`
    (n, 64), and of their `weighted` sum (d,). Of the worker server: the `weights` (n,) of that sum.
    """
    n = setup.num_workers
    shapes = {"products": (n, n), "sums": (n, NUM_SUMS), "weighted": (setup.dim,), "weights": (n,)}
    return expand(seed, name, *shapes[name])
