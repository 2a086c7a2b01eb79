"""The message with the closest company."""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import require_majority, require_not_negative
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry

Neighbours = Literal["paper", "byzfl"]


@dataclass(frozen=True)
class Krum(GeometryRule):
    """The message whose nearest others are nearest: the smallest sum of squared distances to them.

    Guarantee: (f, kappa)-robust with kappa = 6 (1 + f / (n - 2f)); published for n >= 2f + 3.
    Scores: that sum. Suspects: the `num_byzantine` messages with the worst scores, honest ones
    among them whenever fewer lie.
    Ties go to the smallest worker id.
    Cost: n^2 d multiply-adds in one pass, and a copy of one message.
    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent", NeurIPS 2017, section 4.

    >>> import torch
    >>> from phalanx.aggregation import Krum
    >>> gradients = torch.tensor([[1.0, 5.0], [2.0, 4.0], [2.0, 5.0], [2.0, 6.0], [900.0, -900.0]])
    >>> Krum(num_byzantine=1)(gradients)
    tensor([2., 5.])
    >>> Krum(num_byzantine=1).explain(gradients).suspects
    tensor([False, False, False, False,  True])
    """

    num_byzantine: int = 1
    """Liars survived (f)."""

    neighbours: Neighbours = "paper"
    """Others that a message is compared to: n - f - 2 as published, or n - f - 1 as in ByzFL."""

    def __post_init__(self) -> None:
        check_krum(self.num_byzantine, self.neighbours)

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`.

        Raises:
            ValueError: if `num_byzantine` is not below half of the workers.
        """
        return krum_tolerance(self.num_byzantine, num_workers)

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """All weight on the best score."""
        scores = krum_scores(geometry.squared_distances(), num_byzantine, self.neighbours)
        order = scores.argsort(stable=True)
        weights = torch.zeros_like(scores)
        weights[order[0]] = 1.0
        suspects = torch.zeros(len(scores), dtype=torch.bool)
        suspects[order[len(order) - num_byzantine :]] = True
        return Verdict(weights, scores, suspects)


def krum_scores(
    squared_distances: Float[Tensor, "rows rows"], num_byzantine: int, neighbours: Neighbours
) -> Float[Tensor, " rows"]:
    """Sum of the squared distances of every row to its nearest others."""
    num_rows = len(squared_distances)
    wanted = num_rows - num_byzantine - (2 if neighbours == "paper" else 1)
    # The first of a sorted row is the distance to itself.
    return squared_distances.sort(dim=1).values[:, 1 : 1 + max(wanted, 1)].sum(dim=1)


def krum_tolerance(num_byzantine: int, num_workers: int) -> int:
    """`num_byzantine`, with a warning where the published guarantee does not reach."""
    require_majority(num_byzantine, num_workers)
    if num_byzantine and num_workers < 2 * num_byzantine + 3:
        warnings.warn(
            "Krum's guarantee needs num_workers >= 2 * num_byzantine + 3, got "
            f"num_byzantine={num_byzantine} with num_workers={num_workers}",
            stacklevel=2,
        )
    return num_byzantine


def check_krum(num_byzantine: int, neighbours: str) -> None:
    """Raises ValueError for arguments that no number of workers suits."""
    require_not_negative(num_byzantine)
    if neighbours not in ("paper", "byzfl"):
        raise ValueError(f"neighbours must be 'paper' or 'byzfl', got {neighbours!r}")
