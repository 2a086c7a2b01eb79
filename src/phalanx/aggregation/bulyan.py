"""Krum to choose messages, then the values around their median."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import (
    Aggregator,
    State,
    require_majority,
    require_not_negative,
    require_tolerated,
)
from phalanx.aggregation.krum import krum_scores
from phalanx.aggregation.masses import normalized, present
from phalanx.aggregation.mean_around_median import (
    mean_around_median,
    mean_around_weighted_median,
)
from phalanx.aggregation.mixtures import Mixtures, gather


@dataclass(frozen=True)
class Bulyan(Aggregator):
    """Chooses n - 2f messages by Krum, one after the other, then averages around their median.

    Krum can be fooled in a single coordinate when there are many; here every coordinate is the mean
    of the n - 4f values nearest to the median of those chosen.

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

    needs_geometry: ClassVar[bool] = True

    num_byzantine: int = 1
    """Liars survived (f)."""

    def __post_init__(self) -> None:
        require_not_negative(self.num_byzantine)

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`.

        Raises:
            ValueError: unless `num_workers` is at least four times as many and three more.
        """
        require_majority(self.num_byzantine, num_workers)
        if self.num_byzantine and num_workers < 4 * self.num_byzantine + 3:
            raise ValueError(
                "num_byzantine must be at most (num_workers - 3) / 4, "
                f"got {self.num_byzantine} of {num_workers}"
            )
        return self.num_byzantine

    def judge(
        self, rows: Float[Tensor, "workers dim"], masses: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        bound = self.num_tolerated(int(present(masses, len(rows)).sum()))
        mixtures = gather(rows, masses)
        return self.combine(mixtures, require_tolerated(mixtures.finite, bound, masses), ())[0]

    def combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, formed block by block."""
        squared = mixtures.geometry.with_points(0).squared_distances()
        num_chosen = len(squared) - 2 * num_byzantine
        chosen = choose_by_krum(squared, num_byzantine, num_chosen)
        suspects = torch.ones(len(squared), dtype=torch.bool)
        suspects[chosen] = False
        among = mixtures._replace(mixing=mixtures.mixing[chosen])
        num_kept = num_chosen - 2 * num_byzantine
        mass = mixtures.geometry.mass
        mass = None if mass is None else normalized(mass[chosen])
        value = among.reduce(
            mean_around_median(num_chosen, num_kept)
            if mass is None
            else mean_around_weighted_median(mass, float(num_kept))
        )
        scores = krum_scores(squared, num_byzantine, "paper")
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
