"""The median of every coordinate."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import minority, require_not_negative
from phalanx.aggregation.coordinate_rule import CoordinateRule, Reducer
from phalanx.aggregation.sorting_network import OrderStatistics
from phalanx.aggregation.weighted_order import weighted_order


@dataclass(frozen=True)
class CoordinateMedian(CoordinateRule):
    """The middle value of every coordinate; the mean of the two middle ones for an even number.

    Guarantee: every coordinate lies between two honest values if fewer than half of the workers
    lie; (f, kappa)-robust with kappa = 4 (1 + f / (n - 2f))^2.
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
    """Unusable messages that are survived (f); None: as many as are fewer than half."""

    def __post_init__(self) -> None:
        require_not_negative(self.num_byzantine)

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`, or the largest number below half of the workers.

        Raises:
            ValueError: if `num_byzantine` is not below half of the workers.
        """
        return minority(self.num_byzantine, num_workers)

    def reducer(self, num_rows: int, num_byzantine: int) -> Reducer:
        """The mean of the one or two middle values."""
        ranks = tuple(sorted({(num_rows - 1) // 2, num_rows // 2}))
        ordered = OrderStatistics(num_rows, ranks)

        def middle(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
            values = ordered(block)
            return values[0] if len(values) == 1 else values[0] / 2 + values[1] / 2

        return middle

    def weighted_reducer(self, mass: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """The value with half of the mass on either side."""
        return lambda block: weighted_order(block, mass).median()
