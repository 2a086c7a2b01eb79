"""Client sampling: which of many clients take part in a round, and what data each of them has."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.ordering import Batches, Order
from phalanx.randomness import generator


@dataclass(frozen=True, eq=False)
class ClientSampling(Order):
    """Uniform sampling of clients without replacement, anew in every round.

    A client that takes part is given all its samples; in which order it visits them is its
    computation's business. Where all take part in every round, partition i is client i.
    """

    shared: ClassVar[bool] = False
    moves: ClassVar[bool] = True

    indices: Int[Tensor, " samples"]
    """Indices of the samples, client after client."""

    sizes: Int[Tensor, " clients"]
    """How many samples each client holds."""

    def __repr__(self) -> str:
        """Numbers, not the indices of all samples."""
        return f"ClientSampling({len(self.sizes)} clients, {len(self.indices)} samples)"

    @cached_property
    def held(self) -> tuple[Tensor, ...]:
        """Indices of the samples of each client."""
        return tuple(self.indices.split(self.sizes.tolist()))

    def permutation(
        self, num_samples: int, epoch: int, *names: int | str
    ) -> Int[Tensor, " samples"]:
        """As they stand."""
        return torch.arange(num_samples)

    def clients(self, step: int, num_workers: int, seed: int) -> Sequence[int]:
        """The clients of a round, in order of their ids."""
        return _drawn(len(self.sizes), num_workers, seed, step)

    def pool_size(self, num_workers: int) -> int:
        """All of them."""
        return len(self.sizes)

    def num_held(self, client: int) -> int:
        """How many samples a client holds."""
        return len(self.held[client])

    def samples(self, batches: Batches, step: int, partition: int) -> Int[Tensor, " size"]:
        """All samples of the client of a partition."""
        return self.held[self.clients(step, batches.num_partitions, batches.seed)[partition]]


@lru_cache(maxsize=256)
def _drawn(num_clients: int, num_sampled: int, seed: int, step: int) -> tuple[int, ...]:
    drawn = torch.randperm(num_clients, generator=generator(seed, "clients", step))[:num_sampled]
    return tuple(drawn.sort().values.tolist())
