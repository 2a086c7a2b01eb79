"""Rules that weigh whole messages by their geometry: how they lie to one another."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, State, require_tolerated
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.mixtures import Mixtures, gather
from phalanx.aggregation.weights import present
from phalanx.columns import Shard


class Verdict(NamedTuple):
    """What a geometric rule decides, on the finite messages alone.

    Attributes:
        weights: `(rows,)` float64, sum 1; the aggregate is `weights @ messages`. For a rule with a
            centre, what the sum lacks to one is the weight of the centre.
        scores: `(rows,)` float64; higher is more suspicious; lengths, in the unit of the geometry,
            or squares of lengths: see `GeometryRule.squares_scores`.
        suspects: `(rows,)` bool.
    """

    weights: Float[Tensor, " rows"]
    scores: Float[Tensor, " rows"]
    suspects: Bool[Tensor, " rows"]


@dataclass(frozen=True)
class MixtureRule(Aggregator):
    """A rule that works on mixtures of messages in `_combine`, the messages themselves included."""

    _needs_geometry: ClassVar[bool] = True

    def judge(
        self, rows: Float[Tensor, "workers dim"], weights: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        fresh = self.init(rows.shape[1], dtype=rows.dtype, device=rows.device)
        return self._step(rows, fresh, weights)[0]

    def _step(self, rows: Tensor, state: State, weights: Tensor | None) -> tuple[Aggregate, State]:
        return self._combine(*self._gathered(rows, state, weights), state)

    def _gathered(
        self, rows: Tensor, state: State, weights: Tensor | None, shard: Shard | None = None
    ) -> tuple[Mixtures, int]:
        """The messages that take part, and how many of them may be Byzantine."""
        bound = self.num_tolerated(int(present(weights, len(rows)).sum()))
        mixtures = self._measured(rows, state, weights, shard)
        return mixtures, require_tolerated(self, mixtures.finite, bound, weights)

    def _measured(
        self, rows: Tensor, state: State, weights: Tensor | None, shard: Shard | None
    ) -> Mixtures:
        centre = state[0] if state else None
        return gather(rows, weights, origin=self.from_origin, centre=centre, shard=shard)


@dataclass(frozen=True)
class GeometryRule(MixtureRule):
    """A rule that is a function from distances to weights.

    It never sees the messages: one pass fills the Gram matrix, `weigh` works on it in float64, and
    one pass sums the rows that have weight. The same `weigh` serves shards (add up their
    `partial_gram`) and mixtures of rows (`M G M^T`).

    One with memory remembers a single vector, its centre: `init` gives the first, every aggregate
    is the next. The centre is then the last point of the geometry that `weigh` is given.
    """

    uses_sample_weights: ClassVar[bool] = False
    """Whether `weigh` heeds the sample weights. Otherwise the rule selects messages without regard
    to them, and its weights are then multiplied by them."""

    squares_scores: ClassVar[bool] = False
    """Whether the scores of `weigh` are squares of lengths, rather than lengths."""

    @property
    def needs_distances_only(self) -> bool:
        """True, unless it measures from the origin or from a centre that it remembers."""
        return not (self.from_origin or self.init(0))

    @abstractmethod
    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Weights, scores and suspects among the finite messages.

        Args:
            geometry: how they lie to one another.
            num_byzantine: how many of them may still be Byzantine.
        """

    def _combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, which are never formed."""
        known = mixtures.geometry.with_points(1 if state or self.from_origin else 0)
        answer = self._answer(mixtures, self.weigh(known, num_byzantine))
        return answer, (answer.value,) if state else ()

    def _answer(self, mixtures: Mixtures, verdict: Verdict) -> Aggregate:
        """The answer in terms of the workers, each times its sample weight."""
        weights = verdict.weights
        if not self.uses_sample_weights:
            weights = mixtures.geometry.times_sample_weights(weights)
        scores = verdict.scores * mixtures.geometry.unit
        if self.squares_scores:
            scores *= mixtures.geometry.unit
        return mixtures.weighted(weights, scores, verdict.suspects)
