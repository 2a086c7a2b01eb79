"""Coordinate-wise mean around the median."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.coordinate_rule import CoordinateRule, Reducer
from phalanx.aggregation.sorting_network import OrderStatistics
from phalanx.aggregation.weighted_order import WeightedOrder, weighted_order


@dataclass(frozen=True)
class MeanAroundMedian(ByzantineBound, CoordinateRule):
    """Coordinate-wise mean of the n - f values that are nearest to their median.

    `y_k = 1 / (n - f) sum_{i in S_k} x_i,k`, with `S_k` the n - f workers of smallest
    `|x_i,k - median_k|`.

    Guarantee: every value that counts is at most as far from the median as the farthest honest one.
    Scores: the distance of a message to the aggregate. Suspects, a heuristic: three times as far
    as the median message.
    Of two values equally near, the smaller counts.
    Cost: O(n log^2 n) minima and maxima a coordinate; one pass (one more to explain).
    Source: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", arXiv 1802.10116, 2018,
    section 3.

    >>> import torch
    >>> from phalanx.aggregation import MeanAroundMedian
    >>> MeanAroundMedian(num_byzantine=1)(torch.tensor([[1.0], [2.0], [3.0], [900.0]]))
    tensor([2.])
    """

    def reducer(self, num_rows: int, num_byzantine: int) -> Reducer:
        """The mean of the values nearest to the median."""
        return mean_around_median(num_rows, num_rows - num_byzantine)

    def weighted_reducer(self, weights: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """The mean of the weight nearest to the weighted median; the farthest f is left out."""
        return mean_around_weighted_median(weights, float(len(weights) - num_byzantine))


def mean_around_median(num_rows: int, num_kept: int) -> Reducer:
    """The mean of the `num_kept` values of a column that are nearest to its median.

    Sorted, these are a window. Slid up by one, it trades its smallest value for one above it, which
    pays as long as that one is nearer; and once it does not pay, it never will again. So every
    trade is decided by itself.
    """
    ordered = OrderStatistics(num_rows, tuple(range(num_rows)))

    def around(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
        values = ordered(block)
        median = values[(num_rows - 1) // 2] / 2 + values[num_rows // 2] / 2
        for rank in range(num_rows - num_kept):
            below, above = values[rank], values[rank + num_kept]
            pays = above - median < median - below
            place = values[rank % num_kept]
            torch.where(pays, above, place, out=place)
        return ordered.mean(range(num_kept))

    return around


def mean_around_weighted_median(weights: Float[Tensor, " rows"], kept: float) -> Reducer:
    """The mean of so much of the weight in a column as lies nearest to its weighted median."""

    def around(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
        ordered = weighted_order(block, weights)
        nearest = (ordered.values - ordered.median()).abs().argsort(dim=0, stable=True)
        from_median = WeightedOrder(*(part.gather(0, nearest) for part in ordered))
        return from_median.mean_between(0.0, kept)

    return around
