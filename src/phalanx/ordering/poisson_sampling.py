"""Poisson sampling: every sample takes part in a round by a coin of its own."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.ordering.base import Batches, Order
from phalanx.randomness import derive_seed


@dataclass(frozen=True)
class PoissonSampling(Order):
    """Poisson sampling: every sample takes part in every round with probability q.

    `q = batch_size / num_samples`, independently of all others and of other rounds, which is what
    the privacy of DP-SGD is computed for. `batch_size` is the mean size of a batch;
    one may be empty. A sample that is drawn belongs to partition `index mod num_partitions`, the
    same in all rounds. Epochs do not visit every sample once.

    Private training draws the coins from a secret (SHAKE-128): who could tell which samples took
    part in a round would see more than the accountant allows. Otherwise they follow from the seed.

    Cost: eight pseudo-random bytes per sample and round.
    Source: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, "Deep Learning with
    Differential Privacy", CCS 2016 (section 3.1, "lots").

    >>> from phalanx.ordering import Batches, PoissonSampling
    >>> batches = Batches(num_samples=1000, batch_size=100, num_partitions=1, seed=0)
    >>> sizes = [len(PoissonSampling().samples(batches, step, 0)) for step in range(100)]
    >>> 97 < sum(sizes) / 100 < 103, len(set(sizes)) > 10
    (True, True)
    """

    equal_sizes: ClassVar[bool] = False

    secret: str | None = field(default=None, repr=False)
    """What the coins are drawn from, if nobody else is to know them; private training makes one."""

    def permutation(
        self, num_samples: int, epoch: int, *names: int | str
    ) -> Int[Tensor, " samples"]:
        """As they stand."""
        return torch.arange(num_samples)

    def samples(self, batches: Batches, step: int, partition: int) -> Int[Tensor, " size"]:
        """Indices of the samples of one partition of one round."""
        secret = self.secret or f"{derive_seed(batches.seed, 'coins')}"
        drawn = _drawn(secret, batches.num_samples, batches.batch_size, step)
        return drawn[drawn % batches.num_partitions == partition]


@lru_cache(maxsize=2)
def _drawn(secret: str, num_samples: int, batch_size: int, step: int) -> Tensor:
    stream = hashlib.shake_128(f"{secret}/{step}".encode()).digest(8 * num_samples)
    coins = np.frombuffer(stream, dtype="<u8")
    border = min(batch_size * 2**64 // num_samples, 2**64 - 1)
    everybody = batch_size >= num_samples
    drawn = np.arange(num_samples) if everybody else np.flatnonzero(coins < np.uint64(border))
    return torch.from_numpy(drawn)
