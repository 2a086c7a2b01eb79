"""Workers with data of their own: who holds which samples, and in which order they are read."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from phalanx.attacks import Schedule
from phalanx.data import IidPartitioner, Partitioner
from phalanx.randomness import generator, seeded


@dataclass(frozen=True)
class ClientData:
    """The samples that each worker holds, and computes on alone."""

    split: Partitioner
    """How they were dealt out."""

    samples: tuple[Tensor, ...]
    """Indices of the samples of each worker, int64, in order of the workers; none is empty."""

    def batch(self, step: int, worker: int, size: int, seed: int) -> Int[Tensor, " samples"]:
        """Indices of the samples that a worker computes on in a round.

        A worker reads its samples in a new random order every epoch, epoch after epoch without a
        gap, `size` a round: a batch may end one epoch and begin the next, and may be longer than
        the shard.
        """
        own = self.samples[worker]
        first, last = step * size, (step + 1) * size
        epochs = range(first // len(own), (last - 1) // len(own) + 1)
        orders = torch.cat([_order(len(own), seed, worker, epoch) for epoch in epochs])
        start = first - epochs[0] * len(own)
        return own[orders[start : start + size]]


@lru_cache(maxsize=1024)
def _order(num_samples: int, seed: int, worker: int, epoch: int) -> Tensor:
    return torch.randperm(num_samples, generator=generator(seed, "shard", worker, epoch))


def deal(
    shards: Partitioner,
    dataset: Dataset[tuple[Tensor, ...]],
    num_workers: int,
    schedule: Schedule | None,
    seed: int,
) -> ClientData:
    """Deals a data set out to workers, as a function of the seed.

    Workers that are bad for good know all classes: each holds a random share of the whole data
    set, as large as if all workers had one. The others share the whole of it as `shards` says.

    Args:
        shards: how.
        dataset: pairs of an input and a class.
        num_workers: how many workers there are.
        schedule: who is bad when; None for nobody.
        seed: the run's.

    Raises:
        ValueError: if targets are no classes, a worker would hold nothing, or nobody is honest.
    """
    targets = _targets(dataset, seed)
    bad = torch.zeros(num_workers, dtype=torch.bool)
    if schedule is not None:
        bad = schedule.permanent(num_workers, seed)
    honest = (~bad).nonzero().flatten().tolist()
    if not honest:
        raise ValueError(f"shards must go to an honest worker, got none of {num_workers}")
    samples = IidPartitioner().split(targets, num_workers, generator(seed, "shards", "byzantine"))
    own = shards.split(targets, len(honest), generator(seed, "shards"))
    for worker, shard in zip(honest, own, strict=True):
        samples[worker] = shard
    empty = [worker for worker, shard in enumerate(samples) if len(shard) == 0]
    if empty:
        raise ValueError(
            f"shards must give every worker a sample, got none for workers {empty} by {shards}"
        )
    return ClientData(shards, tuple(samples))


def _targets(dataset: Dataset[tuple[Tensor, ...]], seed: int) -> Int[Tensor, " samples"]:
    """The class of every sample; data sets that are no tensors are read once."""
    if type(dataset) is TensorDataset:
        targets = dataset.tensors[1]
    else:
        size = len(dataset)  # type: ignore[arg-type]
        with seeded(seed, "targets"):  # it may crop or flip at random
            targets = torch.stack([torch.as_tensor(dataset[index][1]) for index in range(size)])
    if targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            "shards needs a class for every sample, got targets of shape "
            f"{tuple(targets.shape)} and {targets.dtype}"
        )
    return targets.long()
