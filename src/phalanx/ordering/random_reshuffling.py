"""Which samples make a round, and which of them a partition: a function of the seed, never sent."""

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.randomness import generator


@lru_cache(maxsize=2)
def _order(num_samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_samples, generator=generator(seed, "order", epoch))


def partition_samples(
    num_samples: int, batch_size: int, num_partitions: int, seed: int, step: int, partition: int
) -> Int[Tensor, " samples"]:
    """Indices of the samples of one partition of one round's batch.

    Every epoch visits the samples in a new random order, `batch_size` a round; samples that do not
    fill a last round wait for the next epoch. All replicas of a partition, in any process, get the
    same samples.
    """
    rounds = num_samples // batch_size
    epoch, place = divmod(step, rounds)
    size = batch_size // num_partitions
    start = place * batch_size + partition * size
    return _order(num_samples, seed, epoch)[start : start + size]
