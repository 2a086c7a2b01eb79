"""Per-client data: which samples each client holds, and in which order it reads them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from phalanx.attacks import Schedule
from phalanx.data import DirichletPartitioner, IidPartitioner, Partitioner
from phalanx.ordering.base import Batches, Order
from phalanx.ordering.random_reshuffling import RandomReshuffling
from phalanx.randomness import generator, seeded


@dataclass(frozen=True)
class PerClient(Order):
    """Per-client order: every worker reads only samples of its own, dealt by a partitioner.

    A worker reads its samples in a new order every epoch of its own, epoch after epoch without a
    gap: the samples of a round may end one epoch and begin the next, and may be more than it holds.
    Byzantine workers that are so for good hold random samples of all classes.

    Not under gradient codes: those have several workers compute the same samples.

    >>> import torch
    >>> from phalanx.data import ShardPartitioner
    >>> from phalanx.ordering import Batches, PerClient
    >>> data = torch.utils.data.TensorDataset(torch.zeros(4, 1), torch.tensor([1, 0, 1, 0]))
    >>> order = PerClient(ShardPartitioner()).bind(data, num_workers=2, schedule=None, seed=0)
    >>> sorted(order.samples(Batches(4, 4, 2, seed=0), step=0, partition=1).tolist())
    [0, 2]
    """

    shared: ClassVar[bool] = False

    partitioner: Partitioner = DirichletPartitioner()  # noqa: RUF009 - frozen
    """How the samples are dealt out."""

    within: Order = RandomReshuffling()  # noqa: RUF009 - frozen
    """In which order each worker visits its own."""

    def permutation(
        self, num_samples: int, epoch: int, *names: int | str
    ) -> Int[Tensor, " samples"]:
        """The order within a worker's own samples."""
        return self.within.permutation(num_samples, epoch, *names)

    def samples(self, batches: Batches, step: int, partition: int) -> Int[Tensor, " size"]:
        """Not known before the data set is: see `bind`."""
        raise ValueError("the order PerClient must be bound to a data set first, see `bind`")

    def bind(
        self,
        dataset: Dataset[tuple[Tensor, ...]],
        num_workers: int,
        schedule: Schedule | None,
        seed: int,
    ) -> "ClientData":
        """Deals the data set out to the workers, as a function of the seed.

        Workers that are Byzantine for good know all classes: each holds a random share of the whole
        data set, as large as if all workers had one. The others share the whole of it as the
        partitioner says.

        Raises:
            ValueError: if targets are no classes, a worker would hold nothing, or nobody is honest.
        """
        targets = targets_of(dataset, seed)
        byzantine = torch.zeros(num_workers, dtype=torch.bool)
        if schedule is not None:
            byzantine = schedule.permanent(num_workers, seed)
        honest = (~byzantine).nonzero().flatten().tolist()
        if not honest:
            raise ValueError(
                f"order must give samples to an honest worker, got none of {num_workers}"
            )
        held = IidPartitioner().split(targets, num_workers, generator(seed, "shards", "byzantine"))
        own = self.partitioner.split(targets, len(honest), generator(seed, "shards"))
        for worker, share in zip(honest, own, strict=True):
            held[worker] = share
        empty = [worker for worker, share in enumerate(held) if len(share) == 0]
        if empty:
            raise ValueError(
                "order must give every worker a sample, got none for workers "
                f"{empty} by {self.partitioner}"
            )
        return ClientData(self.partitioner, self.within, tuple(held))


@dataclass(frozen=True)
class ClientData(PerClient):
    """Client data sets: `PerClient` bound to a data set."""

    held: tuple[Tensor, ...] = ()
    """Indices of the samples of each worker, int64, in order of the workers; none is empty."""

    def samples(self, batches: Batches, step: int, partition: int) -> Int[Tensor, " size"]:
        """Indices of the samples that a worker computes on in a round."""
        own, size = self.held[partition], batches.size
        first, last = step * size, (step + 1) * size
        epochs = range(first // len(own), (last - 1) // len(own) + 1)
        names = (batches.seed, "shard", partition)
        visited = torch.cat(
            [_permutation(self.within, len(own), epoch, *names) for epoch in epochs]
        )
        start = first - epochs[0] * len(own)
        return own[visited[start : start + size]]


@lru_cache(maxsize=1024)
def _permutation(order: Order, num_samples: int, epoch: int, *names: int | str) -> Tensor:
    return order.permutation(num_samples, epoch, *names)


def targets_of(dataset: Dataset[tuple[Tensor, ...]], seed: int) -> Int[Tensor, " samples"]:
    """The class of every sample; data sets that are no tensors are read once."""
    if type(dataset) is TensorDataset:
        targets = dataset.tensors[1]
    else:
        size = len(dataset)  # type: ignore[arg-type]
        with seeded(seed, "targets"):  # it may crop or flip at random
            targets = torch.stack([torch.as_tensor(dataset[index][1]) for index in range(size)])
    if targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            "order needs a class for every sample, got targets of shape "
            f"{tuple(targets.shape)} and {targets.dtype}"
        )
    return targets.long()
