"""The Bulyan rule."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate, left_out
from phalanx.aggregation.base import ByzantineBound, State
from phalanx.aggregation.geometry_rule import MixtureRule
from phalanx.aggregation.krum import krum_scores
from phalanx.aggregation.mean_around_median import (
    mean_around_median,
    mean_around_weighted_median,
)
from phalanx.aggregation.mixtures import Mixtures
from phalanx.aggregation.weights import normalized


@dataclass(frozen=True)
class Bulyan(ByzantineBound, MixtureRule):
    """Bulyan: n - 2f messages chosen by Krum, then the mean around their median.

    `y_k = 1 / (n - 4f) sum_{i in S_k} x_i,k`, S_k being the n - 4f of the chosen messages that are
    nearest to their median in coordinate k; Krum chooses one after the other among those left.

    Krum can be fooled in a single coordinate when there are many, which this cannot.

    Guarantee: needs n >= 4f + 3; then every coordinate is within the honest spread of some honest
    message.
    Scores: those of Krum before anybody was chosen. Suspects: the 2f messages not chosen.
    Ties go to the smallest worker id.
    Cost: n^2 d multiply-adds, n - 2f sorts of the distances, then as the mean around the median.
    Source: El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in
    Byzantium", ICML 2018, section 4.

    >>> import torch
    >>> from phalanx.aggregation import Bulyan
    >>> Bulyan(num_byzantine=1)(torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [900.0]]))
    tensor([3.])
    """

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`.

        Raises:
            ValueError: unless `num_workers` is at least four times as many and three more.
        """
        bound = super().num_tolerated(num_workers)
        if bound and num_workers < 4 * bound + 3:
            raise ValueError(
                f"num_byzantine must be at most (num_workers - 3) / 4, got {bound} of {num_workers}"
            )
        return bound

    def _combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, formed block by block."""
        squared = mixtures.geometry.with_points(0).squared_distances()
        num_chosen = len(squared) - 2 * num_byzantine
        chosen = choose_by_krum(squared, num_byzantine, num_chosen)
        among = mixtures._replace(mixing=mixtures.mixing[chosen])
        num_kept = num_chosen - 2 * num_byzantine
        weights = mixtures.geometry.weights
        weights = None if weights is None else normalized(weights[chosen])
        value = among.reduce(
            mean_around_median(num_chosen, num_kept)
            if weights is None
            else mean_around_weighted_median(weights, float(num_kept))
        )
        scores = krum_scores(squared, num_byzantine, "paper")
        kept = torch.zeros(len(squared), dtype=torch.bool)
        kept[chosen] = True
        suspects = left_out(kept, scores)
        unit = mixtures.geometry.unit
        scores = scores * unit * unit
        return Aggregate(value, None, *mixtures.per_worker(scores, suspects)), state


def choose_by_krum(
    squared_distances: Float[Tensor, "rows rows"], num_byzantine: int, num_chosen: int
) -> Int[Tensor, " chosen"]:
    """The rows that Krum picks, each time among those that are left."""
    left = torch.arange(len(squared_distances))
    chosen = []
    for _ in range(num_chosen):
        scores = krum_scores(squared_distances[left][:, left], num_byzantine, "paper")
        best = int(scores.argsort(stable=True)[0])
        chosen.append(int(left[best]))
        left = torch.cat([left[:best], left[best + 1 :]])
    return torch.tensor(chosen)
