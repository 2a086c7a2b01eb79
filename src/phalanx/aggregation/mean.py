"""The plain mean: what to do when nobody lies, and the yardstick for what lies cost."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, State, require_tolerated
from phalanx.aggregation.mixtures import Mixtures
from phalanx.aggregation.passes import column_blocks, finite_rows, weighted_sum


@dataclass(frozen=True)
class Mean(Aggregator):
    """The average of all messages.

    Guarantee: none; a single liar moves it anywhere. Finite lies of any size pass through, so that
    a run shows what they do. A message that is not finite is an error, because nobody is tolerated.
    Scores: zero. Suspects: nobody, ever.
    Cost: one pass.

    >>> import torch
    >>> from phalanx.aggregation import Mean
    >>> Mean()(torch.tensor([[1.0, 5.0], [2.0, 4.0], [900.0, -900.0]]))
    tensor([ 301., -297.])
    """

    @property
    def needs_distances_only(self) -> bool:
        """True: it needs not even those."""
        return True

    def num_tolerated(self, num_workers: int) -> int:
        """0."""
        return 0

    def merge(self, rows: Float[Tensor, "workers dim"]) -> Float[Tensor, " dim"]:
        """The aggregate alone."""
        value = rows.mean(dim=0)
        if torch.isfinite(value.sum()):
            return value
        require_tolerated(finite_rows(rows, torch.ones(len(rows), dtype=torch.bool)), bound=0)
        for columns in column_blocks(len(value)):  # the sum overflowed, which the mean need not
            value[columns] = rows[:, columns].double().div(len(rows)).sum(dim=0)
        return value

    def judge(self, rows: Float[Tensor, "workers dim"]) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        value = self.merge(rows)
        nobody = torch.zeros(len(rows), dtype=torch.bool)
        weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
        return Aggregate(value, weights, torch.zeros_like(weights), nobody, nobody.clone())

    def combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """The mean of mixtures of messages, which are never formed."""
        weights = mixtures.mixing.mean(dim=0)
        value = weighted_sum(mixtures.rows, weights)
        scores = torch.zeros_like(weights)
        scores[~mixtures.finite] = torch.inf
        return Aggregate(value, weights, scores, ~mixtures.finite, ~mixtures.finite), state
