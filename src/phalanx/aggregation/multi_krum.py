"""The mean of the messages with the closest company."""

from dataclasses import dataclass

import torch

from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.krum import Neighbours, check_krum, krum_scores, krum_tolerance


@dataclass(frozen=True)
class MultiKrum(GeometryRule):
    """The mean of the messages with the best Krum scores.

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

    num_byzantine: int = 1
    """Liars survived (f)."""

    num_selected: int | None = None
    """Messages averaged (m), at most num_workers - num_byzantine; None: exactly as many."""

    neighbours: Neighbours = "paper"
    """Others that a message is compared to: n - f - 2 as published, or n - f - 1 as in ByzFL."""

    def __post_init__(self) -> None:
        check_krum(self.num_byzantine, self.neighbours)
        if self.num_selected is not None and self.num_selected < 1:
            raise ValueError(f"num_selected must be at least 1, got {self.num_selected}")

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
        return krum_tolerance(self.num_byzantine, num_workers)

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Equal weights on the best scores."""
        scores = krum_scores(geometry.squared_distances(), num_byzantine, self.neighbours)
        selected = scores.argsort(stable=True)[: self.num_selected or len(scores) - num_byzantine]
        weights = torch.zeros_like(scores)
        weights[selected] = 1 / len(selected)
        return Verdict(weights, scores, weights == 0)
