"""Bucketing: means of random disjoint groups of messages."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.pipeline import PreAggregation
from phalanx.checks import require_at_least


@dataclass(frozen=True)
class Bucketing(PreAggregation):
    """Bucketing: the means of the messages in random buckets of the same size.

    `y_b = 1 / s sum_{i in B_b} x_i` for ceil(n / s) disjoint buckets. Honest means differ less than
    honest messages; but f Byzantine workers may now spoil f of only n / s buckets. Drawn anew every
    round.

    Guarantee: the variance of honest messages falls by the size of the buckets. If the size divides
    the number of workers, the mean of the buckets is the mean of the messages.
    Cost: none.
    Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", ICLR 2022, section 4.

    >>> import torch
    >>> from phalanx.aggregation import Bucketing, Mean
    >>> (Bucketing(2) >> Mean())(torch.tensor([[1.0], [2.0], [3.0], [6.0]]))
    tensor([3.])
    """

    needs_geometry: ClassVar[bool] = False

    size: int = 2
    """Messages in a bucket (s); the last bucket may have fewer."""

    def __post_init__(self) -> None:
        require_at_least(1, size=self.size)

    def counts(self, num_messages: int, num_byzantine: int) -> tuple[int, int]:
        """One mixture per bucket, at most `num_byzantine` of them Byzantine."""
        return -(-num_messages // self.size), num_byzantine

    def mix(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator
    ) -> Float[Tensor, "mixtures messages"]:
        """Equal weights on the messages of a bucket."""
        num_messages = geometry.num_messages
        order = torch.randperm(num_messages, generator=random)
        inside = torch.zeros(-(-num_messages // self.size), num_messages, dtype=torch.float64)
        inside[torch.arange(num_messages) // self.size, order] = 1.0
        return inside / inside.sum(dim=1, keepdim=True)
