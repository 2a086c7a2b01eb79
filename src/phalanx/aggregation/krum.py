"""The Krum rule."""

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.aggregate import left_out
from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.checks import require_one_of

Neighbours = Literal["paper", "byzfl"]


@dataclass(frozen=True)
class Krum(ByzantineBound, GeometryRule):
    """Krum: the message whose nearest others are nearest.

    `x_i` with `i = argmin_i sum_{j in N(i)} ||x_i - x_j||^2`, N(i) being the n - f - 2 messages
    nearest to `x_i`, itself not counted.

    Guarantee: (f, kappa)-robust with kappa = 6 (1 + f / (n - 2f)); published for n >= 2f + 3.
    Scores: that sum. Suspects: the `num_byzantine` messages with the worst scores, less those that
    tie with others; honest ones among them whenever fewer are Byzantine.
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

    squares_scores: ClassVar[bool] = True

    neighbours: Neighbours = "paper"
    """Others that a message is compared to: n - f - 2 as published, or n - f - 1 as in ByzFL."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(("paper", "byzfl"), neighbours=self.neighbours)

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`, with a warning where the published guarantee does not reach.

        Raises:
            ValueError: if it is not below half of the workers.
        """
        bound = super().num_tolerated(num_workers)
        warn_below_guarantee(bound, num_workers)
        return bound

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """All weight on the best score."""
        scores = krum_scores(geometry.squared_distances(), num_byzantine, self.neighbours)
        order = scores.argsort(stable=True)
        weights = torch.zeros_like(scores)
        weights[order[0]] = 1.0
        better = torch.zeros(len(scores), dtype=torch.bool)
        better[order[: len(order) - num_byzantine]] = True
        return Verdict(weights, scores, left_out(better, scores))


def krum_scores(
    squared_distances: Float[Tensor, "rows rows"], num_byzantine: int, neighbours: Neighbours
) -> Float[Tensor, " rows"]:
    """Sum of the squared distances of every row to its nearest others."""
    num_rows = len(squared_distances)
    wanted = num_rows - num_byzantine - (2 if neighbours == "paper" else 1)
    # The first of a sorted row is the distance to itself.
    return squared_distances.sort(dim=1).values[:, 1 : 1 + max(wanted, 1)].sum(dim=1)


def warn_below_guarantee(num_byzantine: int, num_workers: int) -> None:
    """Warns if so few workers are beyond what was published."""
    if num_byzantine and num_workers < 2 * num_byzantine + 3:
        warnings.warn(
            "Krum's guarantee needs num_workers >= 2 * num_byzantine + 3, got "
            f"num_byzantine={num_byzantine} with num_workers={num_workers}",
            stacklevel=2,
        )
