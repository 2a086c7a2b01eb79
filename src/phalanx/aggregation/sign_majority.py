"""Majority vote on the sign of every coordinate."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.coordinate_rule import CoordinateRule, Reducer
from phalanx.columns import Shard, column_blocks, whole


@dataclass(frozen=True)
class SignMajority(CoordinateRule):
    """Majority vote on the sign of every coordinate: -1, 1, or 0 where votes tie.

    `y_k = sign(sum_i sign(x_i,k))`.

    The aggregate has no size, so the learning rate alone says how far a step goes. Whoever sends
    signs only, one bit per coordinate, loses nothing.

    Guarantee: a coordinate on which more than half of the workers are honest and agree is right.
    Scores: the share of coordinates with another sign than the aggregate. Suspects, a heuristic:
    three times as many as the median message, which random signs rarely are.
    Cost: one pass (one more to explain).
    Source: Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with Majority Vote is
    Communication Efficient and Fault Tolerant", ICLR 2019, section 3.

    >>> import torch
    >>> from phalanx.aggregation import SignMajority
    >>> SignMajority()(torch.tensor([[0.1, 5.0], [2.0, -4.0], [-900.0, 0.0]]))
    tensor([1., 0.])
    """

    num_byzantine: int | None = None
    """Byzantine workers tolerated (f); None: as many as are fewer than half."""

    def reducer(self, num_rows: int, num_byzantine: int) -> Reducer:
        """The sign of the sum of signs."""

        def vote(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
            return block.sign().sum(dim=0).sign()

        return vote

    def weighted_reducer(self, weights: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """The sign that has more weight; 0 if neither has, to rounding."""
        tie = 1e-9 * weights.sum().item()

        def vote(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
            votes = weights.to(block.device) @ block.sign().double()
            return votes.sign().where(votes.abs() > tie, 0.0).to(block.dtype)

        return vote

    def _score(
        self, rows: Tensor, value: Tensor, shard: Shard | None = None
    ) -> Float[Tensor, " workers"]:
        """The share of coordinates whose sign is not that of the aggregate."""
        shard = shard or whole(rows)
        others: Tensor = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for block in column_blocks(len(value)):
            others += (rows[:, block].sign() != value[block]).sum(dim=1)
        return shard.add_up(others).cpu() / max(shard.dim, 1)
