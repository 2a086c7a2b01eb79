"""Comparative gradient elimination (CGE)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from phalanx.aggregation.aggregate import left_out
from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry

_NOTHING = 2.0**-400  # of a typical length: squares of what is shorter may underflow


@dataclass(frozen=True)
class ComparativeGradientElimination(ByzantineBound, GeometryRule):
    """Comparative gradient elimination (CGE): the mean of the n - f messages of smallest norm.

    `1 / (n - f) sum_{i in S} x_i`, S being the n - f messages of smallest `||x_i||`. (The source
    sums them; dividing by n - f only scales the learning rate.)

    Guarantee: a Byzantine message counts only if it is at most as long as an honest one, so the
    aggregate is never longer than the longest honest message. It looks at lengths alone: a message
    of common length in any direction, such as a flipped sign, passes.
    Scores: the norm. Suspects: all that were left out, less those that tie with one that was kept.
    Ties go to the smallest worker id.
    Cost: n^2 d multiply-adds in one pass, and the mean of the selected messages.
    Source: Gupta, Liu, Vaidya, "Byzantine Fault-Tolerant Distributed Machine Learning Using
    Stochastic Gradient Descent (SGD) and Norm-Based Comparative Gradient Elimination (CGE)", arXiv
    2008.04699; DSN Workshops 2021.

    >>> import torch
    >>> from phalanx.aggregation import ComparativeGradientElimination
    >>> rule = ComparativeGradientElimination(num_byzantine=1)
    >>> rule(torch.tensor([[1.0, 2.0], [3.0, 0.0], [-900.0, 0.0]]))
    tensor([2., 1.])
    """

    from_origin: ClassVar[bool] = True

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Equal weights on the shortest messages; the origin is the last point of the geometry."""
        norms = geometry.squared_distances()[:-1, -1].sqrt()
        norms = norms.where(norms >= _NOTHING, 0.0)
        kept = norms.argsort(stable=True)[: len(norms) - num_byzantine]
        weights = torch.zeros_like(norms)
        weights[kept] = 1 / len(kept)
        return Verdict(weights, norms, left_out(weights > 0, norms))
