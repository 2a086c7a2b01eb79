"""Arithmetic mean, the baseline without robustness."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, State, require_tolerated
from phalanx.aggregation.mixtures import Mixtures
from phalanx.aggregation.weights import present
from phalanx.columns import column_blocks, finite_rows, weighted_sum


@dataclass(frozen=True)
class Mean(Aggregator):
    """Arithmetic mean: `1 / n sum_i x_i`.

    Guarantee: none; a single Byzantine worker moves it anywhere. Finite messages of any size pass
    through, so that a run shows what they do. A message that is not finite is an error, because
    nobody is tolerated.
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

    def _merge(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        shares = _shares(weights, len(rows))
        alike = bool((shares == shares[0]).all())
        value = rows.mean(dim=0) if alike else weighted_sum(rows, shares)
        if torch.isfinite(value.sum()):
            return value
        require_tolerated(self, finite_rows(rows, present(weights, len(rows))), 0, weights)
        for columns in column_blocks(len(value)):  # the sum overflowed, which the mean need not
            value[columns] = weighted_sum(rows[:, columns].double(), shares).to(value.dtype)
        return value

    def judge(
        self, rows: Float[Tensor, "workers dim"], weights: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        shares = _shares(weights, len(rows))
        nobody = torch.zeros(len(rows), dtype=torch.bool)
        value = self._merge(rows, weights)
        return Aggregate(value, shares, torch.zeros_like(shares), nobody, nobody.clone())

    def _combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """The mean of mixtures of messages, which are never formed."""
        geometry = mixtures.geometry
        weights = (geometry.sample_weights / geometry.num_messages) @ mixtures.mixing
        value = weighted_sum(mixtures.rows, weights)
        scores = torch.zeros_like(weights)
        scores[~mixtures.finite] = torch.inf
        return Aggregate(value, weights, scores, ~mixtures.finite, ~mixtures.finite), state


def _shares(weights: Tensor | None, num_workers: int) -> Tensor:
    """What part of the mean every worker is."""
    if weights is None:
        return torch.full((num_workers,), 1 / num_workers, dtype=torch.float64)
    shares = weights / weights.max()
    return shares / shares.sum()
