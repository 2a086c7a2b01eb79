"""Weighted order statistics of columns."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.weights import position


class WeightedOrder(NamedTuple):
    """The values of every column in order, and how much each of them counts.

    Attributes:
        values: `(rows, width)`, ascending in every column.
        weights: `(rows, width)` float64, of these values.
    """

    values: Float[Tensor, "rows width"]
    weights: Float[Tensor, "rows width"]

    def median(self) -> Float[Tensor, " width"]:
        """Where half of the weight lies on either side; between two values, their mean."""
        half = self.weights[:, :1].sum().item() / 2
        cumulative = self.weights.cumsum(dim=0)
        low, high = (
            self.values.gather(0, position(cumulative, half, beyond=beyond, dim=0))[0]
            for beyond in (False, True)
        )
        return low / 2 + high / 2

    def mean_between(self, start: float, stop: float) -> Float[Tensor, " width"]:
        """The mean of what lies between two cumulative weights; a value may count in part."""
        above = self.weights.cumsum(dim=0)
        below = above - self.weights
        parts = (above.clamp(max=stop) - below.clamp(min=start)).clamp(min=0)
        return (self.values * (parts / parts.sum(dim=0)).to(self.values.dtype)).sum(dim=0)


def weighted_order(
    block: Float[Tensor, "rows width"], weights: Float[Tensor, " rows"]
) -> WeightedOrder:
    """The columns of a block in order, whose rows have these sample weights.

    >>> import torch
    >>> block, weights = torch.tensor([[5.0], [1.0], [2.0]]), torch.tensor([2.0, 0.5, 0.5]).double()
    >>> weighted_order(block, weights).median()
    tensor([5.])
    """
    columns = block.T.contiguous()
    if columns.device.type == "cpu":
        order = torch.from_numpy(columns.numpy().argsort(axis=1))  # vectorised, unlike torch's
    else:
        order = columns.argsort(dim=1)
    return WeightedOrder(columns.gather(1, order).T, weights.to(block.device)[order].T)
