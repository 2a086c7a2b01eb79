"""Rules that weigh whole messages by how they lie to one another."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.base import Aggregate, Aggregator, require_tolerated
from phalanx.aggregation.gram import Geometry, measure
from phalanx.aggregation.passes import weighted_sum


class Verdict(NamedTuple):
    """What a rule of the geometric kind decides, on the finite messages alone.

    Attributes:
        weights: `(rows,)` float64, sum 1; the aggregate is `weights @ messages`.
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
    """

    @abstractmethod
    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Weights, scores and suspects among the finite messages.

        Args:
            geometry: how they lie to one another.
            num_byzantine: how many of them may still be lies.
        """

    def judge(self, rows: Float[Tensor, "workers dim"]) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        bound = self.num_tolerated(len(rows))
        geometry, finite = measure(rows)
        verdict = self.weigh(geometry, require_tolerated(finite, bound))
        weights = torch.zeros(len(rows), dtype=torch.float64)
        weights[finite] = verdict.weights
        scores = torch.full_like(weights, torch.inf)
        scores[finite] = verdict.scores
        suspects = ~finite
        suspects[finite] = verdict.suspects
        return Aggregate(weighted_sum(rows, weights), weights, scores, ~finite, suspects)
