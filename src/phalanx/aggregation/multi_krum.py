"""The Multi-Krum rule."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from phalanx.aggregation.aggregate import left_out
from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.krum import Neighbours, krum_scores, warn_below_guarantee
from phalanx.checks import require_at_least, require_one_of


@dataclass(frozen=True)
class MultiKrum(ByzantineBound, GeometryRule):
    """Multi-Krum: the mean of the m messages with the best Krum scores.

    `1 / m sum_{i in M} x_i`, M being the m messages of smallest `sum_{j in N(i)} ||x_i - x_j||^2`.

    Less noisy than Krum, as it averages. The default keeps n - f messages.
    Scores: those of `Krum`. Suspects: all that were not selected.
    Ties go to the smallest worker id.
    Cost: n^2 d multiply-adds in one pass, and the mean of the selected messages.
    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent", NeurIPS 2017, section 6.

    >>> import torch
    >>> from phalanx.aggregation import MultiKrum
    >>> gradients = torch.tensor([[1.0, 5.0], [2.0, 4.0], [2.0, 5.0], [3.0, 6.0], [900.0, -900.0]])
    >>> MultiKrum(num_byzantine=1)(gradients)
    tensor([2., 5.])
    """

    squares_scores: ClassVar[bool] = True

    num_selected: int | None = None
    """Messages averaged (m), at most num_workers - num_byzantine; None: exactly as many."""

    neighbours: Neighbours = "paper"
    """Others that a message is compared to: n - f - 2 as published, or n - f - 1 as in ByzFL."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(("paper", "byzfl"), neighbours=self.neighbours)
        require_at_least(1, num_selected=self.num_selected)

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`.

        Raises:
            ValueError: if it is not below half of the workers, or `num_selected` is too large.
        """
        if self.num_selected is not None and self.num_selected > num_workers - self.num_byzantine:
            raise ValueError(
                "num_selected must be at most num_workers - num_byzantine, "
                f"got {self.num_selected} of {num_workers} - {self.num_byzantine}"
            )
        bound = super().num_tolerated(num_workers)
        warn_below_guarantee(bound, num_workers)
        return bound

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Equal weights on the best scores."""
        scores = krum_scores(geometry.squared_distances(), num_byzantine, self.neighbours)
        selected = scores.argsort(stable=True)[: self.num_selected or len(scores) - num_byzantine]
        weights = torch.zeros_like(scores)
        weights[selected] = 1 / len(selected)
        return Verdict(weights, scores, left_out(weights > 0, scores))
