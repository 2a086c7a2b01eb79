"""Rules that treat every coordinate by itself."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, State, require_tolerated
from phalanx.aggregation.mixtures import Mixtures, judge_by_distance
from phalanx.aggregation.weights import normalized, present
from phalanx.columns import BLOCK, Reducer, Shard, column_blocks, distances_to, finite_rows
from phalanx.floats import working

__all__ = ["CoordinateRule", "Reducer"]


@dataclass(frozen=True)
class CoordinateRule(Aggregator):
    """A rule that needs one coordinate of all messages at a time.

    It streams over blocks of columns that fit the cache. `explain` takes one more pass for the
    scores, the distances of the messages to the aggregate; calling the rule does not.
    """

    @abstractmethod
    def reducer(self, num_rows: int, num_byzantine: int) -> Reducer:
        """What to do with every block of `num_rows` finite rows, of which some are Byzantine."""

    def weighted_reducer(self, weights: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """What to do with every block of rows that do not all count alike.

        Args:
            weights: how much each row counts, 1 on average.
            num_byzantine: how much of the weight may belong to Byzantine workers.

        Raises:
            ValueError: by default: the rule gives weights no meaning.
        """
        raise ValueError(f"weights must be None for {type(self).__name__}, got {weights.tolist()}")

    def judge(
        self, rows: Float[Tensor, "workers dim"], weights: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        value, finite = self._stream(rows, weights)
        return judge_by_distance(value, self._score(rows, value), finite)

    def _merge(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        return self._stream(rows, weights)[0]

    def _combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, formed block by block."""
        value = self._reduce(mixtures, num_byzantine)
        scores = self._score(mixtures.rows, value, mixtures.shard)
        return judge_by_distance(value, scores, mixtures.finite), state

    def _reduce(self, mixtures: Mixtures, num_byzantine: int) -> Tensor:
        """The aggregate of mixtures of messages alone."""
        weights = mixtures.geometry.weights
        return mixtures.reduce(self._reducer(len(mixtures.mixing), weights, num_byzantine))

    def _score(
        self, rows: Tensor, value: Tensor, shard: Shard | None = None
    ) -> Float[Tensor, " workers"]:
        """How far every message is from the aggregate, float64."""
        return distances_to(rows, value, shard)

    def _reducer(self, num_rows: int, weights: Tensor | None, num_byzantine: int) -> Reducer:
        if weights is None:
            return self.reducer(num_rows, num_byzantine)
        return self.weighted_reducer(weights, num_byzantine)

    def _stream(
        self, rows: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Bool[Tensor, " workers"]]:
        kept = present(weights, len(rows))
        bound = self.num_tolerated(int(kept.sum()))
        value, odd = self._pass(rows, kept, weights, bound)
        if not (finite := finite_rows(rows, odd & kept))[kept].all():
            kept = kept & finite
            left = require_tolerated(self, finite, bound, weights)
            value, _ = self._pass(rows, kept, weights, left)
        return value, kept

    def _pass(
        self, rows: Tensor, kept: Tensor, weights: Tensor | None, num_byzantine: int
    ) -> tuple[Tensor, Tensor]:
        """The aggregate of the kept rows, and whose sums are not finite."""
        num_kept, dim = int(kept.sum()), rows.shape[1]
        relative = None if weights is None else normalized(weights[kept])
        reduce = self._reducer(num_kept, relative, num_byzantine)
        value = rows.new_empty(dim)
        sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        # Blocks fit the cache and are too narrow for torch to split among threads: thousands of
        # short parallel regions would stall on a machine that others use as well.
        for columns in column_blocks(dim, BLOCK):
            block = rows[:, columns].to(working(rows.dtype))
            sums += block.sum(dim=1)
            value[columns] = reduce(block if num_kept == len(rows) else block[kept])
        return value, ~torch.isfinite(sums).cpu()
