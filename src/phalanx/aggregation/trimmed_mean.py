"""Coordinate-wise trimmed mean."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.coordinate_rule import CoordinateRule, Reducer
from phalanx.aggregation.sorting_network import OrderStatistics
from phalanx.aggregation.weighted_order import weighted_order


@dataclass(frozen=True)
class TrimmedMean(ByzantineBound, CoordinateRule):
    """Coordinate-wise trimmed mean: the average without the f smallest and f largest values.

    `y_k = 1 / (n - 2f) sum_{i = f+1}^{n-f} x_(i),k`, with `x_(1),k <= ... <= x_(n),k` the values of
    coordinate k in order.

    Guarantee: every coordinate lies between two honest values; (f, kappa)-robust with
    kappa = 6 rho (1 + rho), rho = f / (n - 2f). With f = 0 it is the mean.
    Scores: the distance of a message to the aggregate. Suspects, a heuristic: three times as far
    as the median message.
    Cost: O(n log^2 n) minima and maxima a coordinate; one pass (one more to explain).
    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
    Optimal Statistical Rates", ICML 2018, section 4.

    >>> import torch
    >>> from phalanx.aggregation import TrimmedMean
    >>> TrimmedMean(num_byzantine=1)(torch.tensor([[1.0, 5.0], [2.0, 4.0], [900.0, -900.0]]))
    tensor([2., 4.])
    """

    def reducer(self, num_rows: int, num_byzantine: int) -> Reducer:
        """The mean of the middle values, never a total less the extremes: these may be huge."""
        ranks = tuple(range(num_byzantine, num_rows - num_byzantine))
        ordered = OrderStatistics(num_rows, ranks, in_order=False)

        def middle(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
            ordered(block)
            return ordered.mean(ranks)

        return middle

    def weighted_reducer(self, weights: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """The mean of the weight in the middle; as much is cut off at either end as f rows have."""
        start, stop = float(num_byzantine), weights.sum().item() - num_byzantine
        return lambda block: weighted_order(block, weights).mean_between(start, stop)
