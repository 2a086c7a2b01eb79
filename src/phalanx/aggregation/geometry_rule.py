"""Rules that weigh whole messages by how they lie to one another."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, State, require_tolerated
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.masses import present
from phalanx.aggregation.mixtures import Mixtures, gather


class Verdict(NamedTuple):
    """What a rule of the geometric kind decides, on the finite messages alone.

    Attributes:
        weights: `(rows,)` float64, sum 1; the aggregate is `weights @ messages`. For a rule with a
            centre, what the sum lacks to one is the weight of the centre.
        scores: `(rows,)` float64; higher is more suspicious.
        suspects: `(rows,)` bool.
    """

    weights: Float[Tensor, " rows"]
    scores: Float[Tensor, " rows"]
    suspects: Bool[Tensor, " rows"]


@dataclass(frozen=True)
class GeometryRule(Aggregator):
    """A rule that is a function from distances to weights.

    It never sees the messages: one pass fills the Gram matrix, `weigh` works on it in float64, and
    one pass sums the rows that have weight. The same `weigh` serves shards (add up their
    `partial_gram`) and mixtures of rows (`M G M^T`).

    One with memory remembers a single vector, its centre: `init` gives the first, every aggregate
    is the next. The centre is then the last point of the geometry that `weigh` is given.
    """

    needs_geometry: ClassVar[bool] = True

    weighs_masses: ClassVar[bool] = False
    """Whether `weigh` heeds the masses of the messages. Otherwise the rule selects messages without
    regard to them, and its weights are then multiplied by them."""

    @property
    def needs_distances_only(self) -> bool:
        """True, unless it measures from a centre that it remembers."""
        return not self.init(0)

    @abstractmethod
    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Weights, scores and suspects among the finite messages.

        Args:
            geometry: how they lie to one another.
            num_byzantine: how many of them may still be lies.
        """

    def judge(
        self, rows: Float[Tensor, "workers dim"], masses: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        fresh = self.init(rows.shape[1], dtype=rows.dtype, device=rows.device)
        return self.step(rows, fresh, masses)[0]

    def step(
        self,
        rows: Float[Tensor, "workers dim"],
        state: State,
        masses: Float[Tensor, " workers"] | None = None,
    ) -> tuple[Aggregate, State]:
        """One round on stacked messages: the answer, and the next state."""
        bound = self.num_tolerated(int(present(masses, len(rows)).sum()))
        mixtures = gather(rows, masses, centre=state[0] if state else None)
        return self.combine(mixtures, require_tolerated(mixtures.finite, bound, masses), state)

    def combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, which are never formed."""
        known = mixtures.geometry.with_points(1 if state else 0)
        answer = self.answer(mixtures, self.weigh(known, num_byzantine))
        return answer, (answer.value,) if state else ()

    def answer(self, mixtures: Mixtures, verdict: Verdict) -> Aggregate:
        """The answer in terms of the workers, each weighed by its mass."""
        weights = verdict.weights
        if not self.weighs_masses:
            weights = mixtures.geometry.by_mass(weights)
        return mixtures.weighted(weights, verdict.scores, verdict.suspects)
