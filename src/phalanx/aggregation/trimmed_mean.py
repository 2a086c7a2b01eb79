"""The mean of every coordinate without its extremes."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import require_majority, require_not_negative
from phalanx.aggregation.coordinate_rule import CoordinateRule, Reducer
from phalanx.aggregation.sorting_network import OrderStatistics
from phalanx.aggregation.weighted_order import weighted_order


@dataclass(frozen=True)
class TrimmedMean(CoordinateRule):
    """Drops the f smallest and the f largest values of every coordinate and averages the rest.

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

    num_byzantine: int = 1
    """Liars survived, and values dropped at either end (f)."""

    def __post_init__(self) -> None:
        require_not_negative(self.num_byzantine)

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`.

        Raises:
            ValueError: if it is not below half of the workers.
        """
        require_majority(self.num_byzantine, num_workers)
        return self.num_byzantine

    def reducer(self, num_rows: int, num_byzantine: int) -> Reducer:
        """The mean of the middle values, never a total less the extremes: these may be huge."""
        ranks = tuple(range(num_byzantine, num_rows - num_byzantine))
        ordered = OrderStatistics(num_rows, ranks, in_order=False)

        def middle(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
            ordered(block)
            return ordered.mean(ranks)

        return middle

    def weighted_reducer(self, mass: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """The mean of the mass in the middle; as much is cut off at either end as f rows have."""
        start, stop = float(num_byzantine), mass.sum().item() - num_byzantine
        return lambda block: weighted_order(block, mass).mean_between(start, stop)
