"""Size partitioner: clients that hold unlike numbers of samples, of like classes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.checks import require_finite_at_least
from phalanx.data.partitioner import Partitioner, check_split, shuffled

Kind = Literal["lognormal", "linear", "square", "exponential"]


@dataclass(frozen=True)
class SizePartitioner(Partitioner):
    """Random samples to each client, in shares that differ: quantity skew.

    Client i = 1, 2, ... has a share in proportion to `exp(sigma z_i)` with a standard normal z_i
    (lognormal), to i (linear), to `i^2` (square), or to `exp(i)` (exponential). Every client has a
    sample if there are enough for all.

    >>> import torch
    >>> shards = SizePartitioner("linear").split(torch.zeros(60, dtype=torch.int64), num_workers=3)
    >>> [len(shard) for shard in shards]
    [10, 20, 30]
    """

    kind: Kind = "lognormal"
    """How shares grow."""

    sigma: float = 1.0
    """Spread of lognormal shares; 0 makes them equal."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, sigma=self.sigma)

    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """Samples in random order, cut by the shares; see `Partitioner.split`."""
        order = shuffled(len(check_split(targets, num_workers)), generator)
        shares = self._shares(num_workers, generator)
        spare = len(order) - num_workers  # one is everybody's
        if spare < 0:
            return list(order.tensor_split(num_workers))
        parts = shares.cumsum()[:-1] / shares.sum()
        cuts = np.rint(parts * len(order)).astype(int)
        if (np.diff([0, *cuts, len(order)]) == 0).any():
            cuts = np.rint(parts * spare).astype(int) + np.arange(1, num_workers)
        return list(order.tensor_split(cuts.tolist()))

    def _shares(
        self, num_workers: int, generator: torch.Generator | None
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        numbers = np.arange(1, num_workers + 1, dtype=np.float64)
        if self.kind == "linear":
            return numbers
        if self.kind == "square":
            return numbers**2
        if self.kind == "exponential":
            return np.exp(numbers - num_workers)
        drawn = torch.randn(num_workers, generator=generator, dtype=torch.float64)
        return np.exp(self.sigma * drawn.numpy())
