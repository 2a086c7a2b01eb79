"""Base class of data partitioners, for workers with data of their own."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.checks import require_at_least


@dataclass(frozen=True)
class Partitioner(ABC):
    """A partition of the samples of a data set over workers."""

    @abstractmethod
    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """Indices of the samples of each worker: int64, on the CPU, no sample twice.

        Args:
            targets: the class of every sample, 0 or more.
            num_workers: how many shards are made.
            generator: source of randomness, on the CPU; None draws from torch's global one.

        Raises:
            ValueError: if `num_workers` is below 1, or a class below 0.
        """


def check_split(targets: Int[Tensor, " samples"], num_workers: int) -> Int[Tensor, " samples"]:
    """The targets on the CPU.

    Raises:
        ValueError: if `num_workers` is below 1, or a class below 0.
    """
    require_at_least(1, num_workers=num_workers)
    if len(targets) and targets.min() < 0:
        raise ValueError(f"targets must be 0 or more, got {int(targets.min())}")
    return targets.cpu()


def shuffled(num_samples: int, generator: torch.Generator | None) -> Int[Tensor, " samples"]:
    """The numbers below `num_samples` in random order."""
    return torch.randperm(num_samples, generator=generator)
