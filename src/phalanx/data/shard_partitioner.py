"""Shard partitioner: one or two classes per worker."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.data.partitioner import Partitioner, check_split, shuffled


@dataclass(frozen=True)
class ShardPartitioner(Partitioner):
    """Shards of the samples sorted by class, of equal size, one more or less.

    The hardest split: most workers know a class or two. Within a class the order is random.

    Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", ICLR 2022, experiments (non-iid).

    >>> import torch
    >>> targets = torch.tensor([1, 0, 1, 0])
    >>> [targets[shard].tolist() for shard in ShardPartitioner().split(targets, num_workers=2)]
    [[0, 0], [1, 1]]
    """

    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """Pieces of the samples in the order of their classes; see `Partitioner.split`."""
        classes = check_split(targets, num_workers)
        order = shuffled(len(classes), generator)
        return list(order[classes[order].argsort(stable=True)].tensor_split(num_workers))
