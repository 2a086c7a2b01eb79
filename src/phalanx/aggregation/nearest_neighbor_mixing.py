"""Every message is replaced by the mean of its neighbourhood."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import require_majority, require_not_negative
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.pipeline import PreAggregation


@dataclass(frozen=True)
class NearestNeighborMixing(PreAggregation):
    """Replaces every message by the mean of its n - f nearest, itself among them (NNM).

    Helps every rule where honest messages differ a lot, as those of workers with different data do.
    Put it last before the rule.

    Guarantee: before an (f, kappa)-robust rule, a (f, 8 f / (n - f) (kappa + 1))-robust one.
    Ties go to the smallest worker id.
    Cost: the Gram matrix, and arithmetic on n x n.
    Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for
    Optimal Byzantine ML under Heterogeneity", AISTATS 2023, section 4.

    >>> import torch
    >>> from phalanx.aggregation import CoordinateMedian, NearestNeighborMixing
    >>> rule = NearestNeighborMixing(num_byzantine=1) >> CoordinateMedian()
    >>> rule(torch.tensor([[1.0], [2.0], [3.0], [900.0]]))
    tensor([2.])
    """

    num_byzantine: int = 1
    """Liars among the workers (f)."""

    def __post_init__(self) -> None:
        require_not_negative(self.num_byzantine)

    def outcome(self, num_messages: int, num_byzantine: int) -> tuple[int, int]:
        """As many mixtures as messages, as many of them centred on liars.

        Raises:
            ValueError: if `num_byzantine` is not below half of the messages.
        """
        require_majority(num_byzantine, num_messages)
        return num_messages, num_byzantine

    def mass(
        self, matrix: Float[Tensor, "mixtures messages"], masses: Float[Tensor, " messages"]
    ) -> Float[Tensor, " mixtures"]:
        """A mixture counts as much as the message that it replaces."""
        return masses

    def mix(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator
    ) -> Float[Tensor, "mixtures messages"]:
        """Equal weights on the nearest messages."""
        squared = geometry.with_points(0).squared_distances().fill_diagonal_(-1)
        num_near = len(squared) - num_byzantine
        nearest = squared.argsort(dim=1, stable=True)[:, :num_near]
        return torch.zeros_like(squared).scatter_(1, nearest, 1 / num_near)
