"""Coordinate-wise median."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.coordinate_rule import CoordinateRule, Reducer
from phalanx.aggregation.sorting_network import OrderStatistics
from phalanx.aggregation.weighted_order import weighted_order


@dataclass(frozen=True)
class CoordinateMedian(CoordinateRule):
    """Coordinate-wise median: the middle value, or the mean of the two middle ones.

    `y_k = median(x_1,k, ..., x_n,k)`.

    Guarantee: every coordinate lies between two honest values if fewer than half of the workers
    are Byzantine; (f, kappa)-robust with kappa = 4 (1 + f / (n - 2f))^2.
    Scores: the distance of a message to the aggregate. Suspects, a heuristic: three times as far
    as the median message.
    Cost: O(n log^2 n) minima and maxima a coordinate; one pass (one more to explain).
    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
    Optimal Statistical Rates", ICML 2018, section 4.

    >>> import torch
    >>> from phalanx.aggregation import CoordinateMedian
    >>> CoordinateMedian()(torch.tensor([[1.0, 5.0], [2.0, 4.0], [900.0, -900.0]]))
    tensor([2., 4.])
    """

    num_byzantine: int | None = None
    """Byzantine workers tolerated (f); None: as many as are fewer than half."""

    def reducer(self, num_rows: int, num_byzantine: int) -> Reducer:
        """The mean of the one or two middle values."""
        ranks = tuple(sorted({(num_rows - 1) // 2, num_rows // 2}))
        ordered = OrderStatistics(num_rows, ranks)

        def middle(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
            values = ordered(block)
            return values[0] if len(values) == 1 else values[0] / 2 + values[1] / 2

        return middle

    def weighted_reducer(self, weights: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """The value with half of the weight on either side."""
        return lambda block: weighted_order(block, weights).median()
