"""Sample order interface: which samples form which partition of which round."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from phalanx.attacks import Schedule


@dataclass(frozen=True)
class Batches:
    """Batching of a run: data set size, batch size, partitions per round and seed."""

    num_samples: int
    """Samples in the data set."""
    batch_size: int
    """Samples per round, over all partitions; a multiple of their number."""
    num_partitions: int
    """Partitions of a round."""
    seed: int
    """Of the run."""

    @property
    def size(self) -> int:
        """Samples per partition."""
        return self.batch_size // self.num_partitions

    @property
    def rounds_per_epoch(self) -> int:
        """Rounds that the data set fills; one if it does not fill any."""
        return max(1, self.num_samples // self.batch_size)


@dataclass(frozen=True)
class Order(ABC):
    """Sample order: a function of the seed, never sent.

    Every epoch visits the samples in the order of `permutation`, `batch_size` per round; samples
    that do not fill a last round wait for the next epoch. All replicas of a partition, in any
    process, get the same samples.
    """

    shared: ClassVar[bool] = True
    """Whether every sample may fall to every worker; else partition i is worker i's own data."""

    moves: ClassVar[bool] = False
    """Whether partitions are other clients' in other rounds: what a client remembers then goes
    where the client is computed, and it gives `clients`, `pool_size` and `num_held`."""

    equal_sizes: ClassVar[bool] = True
    """Whether all partitions of a round have as many samples; else each is computed by itself."""

    @abstractmethod
    def permutation(
        self, num_samples: int, epoch: int, *names: int | str
    ) -> Int[Tensor, " samples"]:
        """The samples `0 .. num_samples - 1` in the order of one epoch.

        Args:
            num_samples: how many there are.
            epoch: which, counted from 0.
            names: what randomness is derived from, the run's seed first (see `derive_seed`).
        """

    def samples(self, batches: Batches, step: int, partition: int) -> Int[Tensor, " size"]:
        """Indices of the samples of one partition of one round."""
        epoch, place = divmod(step, batches.rounds_per_epoch)
        start = place * batches.batch_size + partition * batches.size
        visited = _permutation(self, batches.num_samples, epoch, batches.seed, "order")
        return visited[start : start + batches.size]

    def clients(self, step: int, num_workers: int, seed: int) -> Sequence[int]:
        """Whose data the partitions of a round are, by partition; worker i's, by default."""
        return range(num_workers)

    def pool_size(self, num_workers: int) -> int:
        """How many clients there are, of whom some may take part in a round."""
        return num_workers

    def num_held(self, client: int) -> int:
        """How many samples a client holds.

        Raises:
            ValueError: if clients hold none of their own.
        """
        raise ValueError(f"order must give clients data of their own, got {self}")

    def bind(
        self,
        dataset: Dataset[tuple[Tensor, ...]],
        num_workers: int,
        schedule: Schedule | None,
        seed: int,
    ) -> "Order":
        """The order over a data set: itself, unless it has to look at the data first.

        Args:
            dataset: the data set.
            num_workers: workers of the run.
            schedule: which workers are Byzantine when, in a simulated attack; None for none.
            seed: of the run.

        Raises:
            ValueError: if the data do not fit the order.
        """
        return self


@lru_cache(maxsize=2)
def _permutation(order: Order, num_samples: int, epoch: int, *names: int | str) -> Tensor:
    return order.permutation(num_samples, epoch, *names)
