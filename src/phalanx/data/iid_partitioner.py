"""IID partitioner: random shares of equal size."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.data.partitioner import Partitioner, check_split, shuffled


@dataclass(frozen=True)
class IidPartitioner(Partitioner):
    """Random shares of the samples, of equal size, one more or less.

    >>> import torch
    >>> targets = torch.tensor([0, 0, 0, 1, 1])
    >>> [len(shard) for shard in IidPartitioner().split(targets, num_workers=2)]
    [3, 2]
    """

    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """Pieces of the samples in random order; see `Partitioner.split`."""
        number = len(check_split(targets, num_workers))
        return list(shuffled(number, generator).tensor_split(num_workers))
