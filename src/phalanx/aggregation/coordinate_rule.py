"""Rules that treat every coordinate by itself."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, State, require_tolerated
from phalanx.aggregation.mixtures import Mixtures, judge_by_distance
from phalanx.aggregation.passes import (
    Reducer,
    Shard,
    column_blocks,
    distances_to,
    finite_rows,
    working_dtype,
)

__all__ = ["CoordinateRule", "Reducer"]


@dataclass(frozen=True)
class CoordinateRule(Aggregator):
    """A rule that needs one coordinate of all messages at a time.

    It streams over blocks of columns that fit the cache. `explain` takes one more pass for the
    scores, the distances of the messages to the aggregate; calling the rule does not.
    """

    @abstractmethod
    def reducer(self, num_rows: int, num_byzantine: int) -> Reducer:
        """What to do with every block of `num_rows` finite rows, of which some may be lies."""

    def merge(self, rows: Float[Tensor, "workers dim"]) -> Float[Tensor, " dim"]:
        """The aggregate alone."""
        return self._stream(rows)[0]

    def judge(self, rows: Float[Tensor, "workers dim"]) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        value, finite = self._stream(rows)
        return judge_by_distance(value, self.distances(rows, value), finite)

    def combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, formed block by block."""
        value = mixtures.reduce(self.reducer(len(mixtures.mixing), num_byzantine))
        distances = self.distances(mixtures.rows, value, mixtures.shard)
        return judge_by_distance(value, distances, mixtures.finite), state

    def distances(
        self,
        rows: Float[Tensor, "workers dim"],
        value: Float[Tensor, " dim"],
        shard: Shard | None = None,
    ) -> Float[Tensor, " workers"]:
        """How far every message is from the aggregate, which makes its score; float64."""
        return distances_to(rows, value, shard)

    def _stream(self, rows: Tensor) -> tuple[Tensor, Bool[Tensor, " workers"]]:
        bound = self.num_tolerated(len(rows))
        finite = torch.ones(len(rows), dtype=torch.bool)
        value, odd = self._pass(rows, finite, bound)
        if odd.any():
            finite = finite_rows(rows, odd)
            if not finite.all():
                value, _ = self._pass(rows, finite, require_tolerated(finite, bound))
        return value, finite

    def _pass(self, rows: Tensor, kept: Tensor, num_byzantine: int) -> tuple[Tensor, Tensor]:
        """The aggregate of the kept rows, and whose sums are not finite."""
        num_kept, dim = int(kept.sum()), rows.shape[1]
        reduce = self.reducer(num_kept, num_byzantine)
        value = rows.new_empty(dim)
        sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        # Blocks fit the cache and are too narrow for torch to split among threads: thousands of
        # short parallel regions would stall on a machine that others use as well.
        for columns in column_blocks(dim):
            block = rows[:, columns].to(working_dtype(rows.dtype))
            sums += torch.stack([row.sum() for row in block])
            value[columns] = reduce(block if num_kept == len(rows) else block[kept])
        return value, ~torch.isfinite(sums).cpu()
