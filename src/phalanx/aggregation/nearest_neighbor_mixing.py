"""Nearest-neighbour mixing (NNM)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.pipeline import PreAggregation
from phalanx.checks import require_minority


@dataclass(frozen=True)
class NearestNeighborMixing(ByzantineBound, PreAggregation):
    """Nearest-neighbour mixing: replaces every message by the mean of its n - f nearest.

    `x_i <- 1 / (n - f) sum_{j in N(i)} x_j`, N(i) being the n - f messages nearest to `x_i`, itself
    among them.

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

    def counts(self, num_messages: int, num_byzantine: int) -> tuple[int, int]:
        """As many mixtures as messages, as many of them centred on Byzantine ones.

        Raises:
            ValueError: if `num_byzantine` is not below half of the messages.
        """
        require_minority(num_byzantine, num_messages)
        return num_messages, num_byzantine

    def mixture_weights(
        self, matrix: Float[Tensor, "mixtures messages"], weights: Float[Tensor, " messages"]
    ) -> Float[Tensor, " mixtures"]:
        """A mixture counts as much as the message that it replaces."""
        return weights

    def mix(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator
    ) -> Float[Tensor, "mixtures messages"]:
        """Equal weights on the nearest messages."""
        squared = geometry.with_points(0).squared_distances().fill_diagonal_(-1)
        num_near = len(squared) - num_byzantine
        nearest = squared.argsort(dim=1, stable=True)[:, :num_near]
        return torch.zeros_like(squared).scatter_(1, nearest, 1 / num_near)
