"""Rules that treat every coordinate by itself."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, State, require_tolerated
from phalanx.aggregation.masses import normalized, present
from phalanx.aggregation.mixtures import Mixtures, judge_by_distance
from phalanx.aggregation.passes import (
    BLOCK,
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

    def weighted_reducer(self, mass: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """What to do with every block of rows that do not all count alike.

        Args:
            mass: how much each row counts, 1 on average.
            num_byzantine: how much of the mass may belong to lies.

        Raises:
            ValueError: by default: the rule gives weights no meaning.
        """
        raise ValueError(f"weights must be None for {type(self).__name__}, got {mass.tolist()}")

    def merge(
        self, rows: Float[Tensor, "workers dim"], masses: Float[Tensor, " workers"] | None = None
    ) -> Float[Tensor, " dim"]:
        """The aggregate alone."""
        return self._stream(rows, masses)[0]

    def judge(
        self, rows: Float[Tensor, "workers dim"], masses: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        value, finite = self._stream(rows, masses)
        return judge_by_distance(value, self.distances(rows, value), finite)

    def combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, formed block by block."""
        value = self.reduce(mixtures, num_byzantine)
        distances = self.distances(mixtures.rows, value, mixtures.shard)
        return judge_by_distance(value, distances, mixtures.finite), state

    def reduce(self, mixtures: Mixtures, num_byzantine: int) -> Float[Tensor, " dim"]:
        """The aggregate of mixtures of messages alone."""
        mass = mixtures.geometry.mass
        return mixtures.reduce(self._reducer(len(mixtures.mixing), mass, num_byzantine))

    def distances(
        self,
        rows: Float[Tensor, "workers dim"],
        value: Float[Tensor, " dim"],
        shard: Shard | None = None,
    ) -> Float[Tensor, " workers"]:
        """How far every message is from the aggregate, which makes its score; float64."""
        return distances_to(rows, value, shard)

    def _reducer(self, num_rows: int, mass: Tensor | None, num_byzantine: int) -> Reducer:
        if mass is None:
            return self.reducer(num_rows, num_byzantine)
        return self.weighted_reducer(mass, num_byzantine)

    def _stream(
        self, rows: Tensor, masses: Tensor | None
    ) -> tuple[Tensor, Bool[Tensor, " workers"]]:
        kept = present(masses, len(rows))
        bound = self.num_tolerated(int(kept.sum()))
        value, odd = self._pass(rows, kept, masses, bound)
        if not (finite := finite_rows(rows, odd & kept))[kept].all():
            kept = kept & finite
            value, _ = self._pass(rows, kept, masses, require_tolerated(finite, bound, masses))
        return value, kept

    def _pass(
        self, rows: Tensor, kept: Tensor, masses: Tensor | None, num_byzantine: int
    ) -> tuple[Tensor, Tensor]:
        """The aggregate of the kept rows, and whose sums are not finite."""
        num_kept, dim = int(kept.sum()), rows.shape[1]
        mass = None if masses is None else normalized(masses[kept])
        reduce = self._reducer(num_kept, mass, num_byzantine)
        value = rows.new_empty(dim)
        sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        # Blocks fit the cache and are too narrow for torch to split among threads: thousands of
        # short parallel regions would stall on a machine that others use as well.
        for columns in column_blocks(dim, BLOCK):
            block = rows[:, columns].to(working_dtype(rows.dtype))
            sums += block.sum(dim=1)
            value[columns] = reduce(block if num_kept == len(rows) else block[kept])
        return value, ~torch.isfinite(sums).cpu()
