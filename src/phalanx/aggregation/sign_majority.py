"""A vote on the sign of every coordinate."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import minority, require_not_negative
from phalanx.aggregation.coordinate_rule import CoordinateRule, Reducer
from phalanx.aggregation.passes import Shard, column_blocks, whole


@dataclass(frozen=True)
class SignMajority(CoordinateRule):
    """The sign that most messages have, coordinate by coordinate: -1, 1, or 0 where votes tie.

    The aggregate has no size, so the learning rate alone says how far a step goes. Whoever sends
    signs only, one bit a coordinate, loses nothing.

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
        """The sign of the sum of signs."""

        def vote(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
            return block.sign().sum(dim=0).sign()

        return vote

    def weighted_reducer(self, mass: Float[Tensor, " rows"], num_byzantine: int) -> Reducer:
        """The sign that has more mass; 0 if neither has, to rounding."""
        tie = 1e-9 * mass.sum().item()

        def vote(block: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
            votes = mass.to(block.device) @ block.sign().double()
            return votes.sign().where(votes.abs() > tie, 0.0).to(block.dtype)

        return vote

    def distances(
        self,
        rows: Float[Tensor, "workers dim"],
        value: Float[Tensor, " dim"],
        shard: Shard | None = None,
    ) -> Float[Tensor, " workers"]:
        """The share of coordinates whose sign is not that of the aggregate."""
        shard = shard or whole(rows)
        others: Tensor = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for block in column_blocks(len(value)):
            others += (rows[:, block].sign() != value[block]).sum(dim=1)
        return shard.add_up(others).cpu() / max(shard.dim, 1)
