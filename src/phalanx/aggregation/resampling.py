"""Resampling: means of random overlapping groups of messages."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.pipeline import PreAggregation
from phalanx.checks import require_at_least


@dataclass(frozen=True)
class Resampling(PreAggregation):
    """Resampling: as many means of a few random messages, each message used equally often.

    `y_i = 1 / s sum_{c = 1}^s x_{p_c(i)}` for s random permutations p_c: every mean takes one
    message of each of `copies` random permutations. Drawn anew every round.

    Guarantee: the mean of all stays the same; the variance of honest messages falls by `copies`,
    and `copies` times as many messages may be Byzantine, which the rule has to tolerate.
    Cost: none.
    Source: He, Karimireddy, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Resampling", arXiv 2006.09365v1, 2020, section 4.

    >>> import torch
    >>> from phalanx.aggregation import Mean, Resampling
    >>> (Resampling(2) >> Mean())(torch.tensor([[1.0], [2.0], [6.0]]))
    tensor([3.])
    """

    needs_geometry: ClassVar[bool] = False

    copies: int = 2
    """How often every message is used, and messages in a mean (s)."""

    def __post_init__(self) -> None:
        require_at_least(1, copies=self.copies)

    def counts(self, num_messages: int, num_byzantine: int) -> tuple[int, int]:
        """As many mixtures as messages, `copies` times as many of them Byzantine."""
        return num_messages, self.copies * num_byzantine

    def mix(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator
    ) -> Float[Tensor, "mixtures messages"]:
        """The average of `copies` permutation matrices."""
        num_messages = geometry.num_messages
        identity = torch.eye(num_messages, dtype=torch.float64)
        counts = torch.zeros_like(identity)
        for _ in range(self.copies):
            counts += identity[torch.randperm(num_messages, generator=random)]
        return counts / self.copies
