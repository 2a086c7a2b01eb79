"""Nearest-neighbour averaging around a trusted message (MoNNA)."""

from dataclasses import dataclass

import torch

from phalanx.aggregation.aggregate import Aggregate, left_out
from phalanx.aggregation.base import ByzantineBound, State
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.mixtures import Mixtures
from phalanx.checks import require_at_least
from phalanx.errors import TooManyByzantineError


@dataclass(frozen=True)
class MoNNA(ByzantineBound, GeometryRule):
    """Nearest-neighbour averaging: the mean of the n - f messages nearest to a trusted one.

    `1 / (n - f) sum_{i in S} x_i`, S being the n - f messages of smallest `||x_i - x_r||`, the
    reference r itself among them.

    Meant for training without a server, where every worker trusts its own message. If the reference
    is Byzantine, so is the aggregate.

    Scores: the distance to the reference. Suspects: all that were left out.
    Ties go to the smallest worker id. In a `Pipeline` that regroups messages, the reference is the
    mixture to which the worker contributes most, the first of several.
    Cost: n^2 d multiply-adds in one pass, and the mean of the selected messages.
    Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning
    with Linear Gradient Overhead", ICML 2023, section 3.

    >>> import torch
    >>> from phalanx.aggregation import MoNNA
    >>> MoNNA(num_byzantine=1, reference=0)(torch.tensor([[1.0], [2.0], [3.0], [900.0]]))
    tensor([2.])
    """

    reference: int = 0
    """The worker that is trusted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, reference=self.reference)

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Equal weights on the messages nearest to that of number `reference`."""
        return nearest_to(self.reference, geometry, num_byzantine)

    def _combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages; finds the reference among those that are left.

        Raises:
            ValueError: if there is no such worker.
            TooManyByzantineError: if the message of the reference is not finite, or its sample
                weight is 0.
        """
        if self.reference >= len(mixtures.finite):
            raise ValueError(
                f"reference must be below num_workers, got {self.reference} "
                f"of {len(mixtures.finite)}"
            )
        if not mixtures.finite[self.reference]:
            raise TooManyByzantineError(
                f"the message of the reference, worker {self.reference}, is not finite, "
                "or its sample weight is 0",
                workers=[self.reference],
                bound=0,
            )
        position = int(mixtures.finite[: self.reference].sum())
        if len(mixtures.mixing) != mixtures.finite.sum():
            position = int(mixtures.mixing[:, self.reference].argmax())
        known = mixtures.geometry.with_points(0)
        return self._answer(mixtures, nearest_to(position, known, num_byzantine)), state


def nearest_to(row: int, geometry: Geometry, num_byzantine: int) -> Verdict:
    """Equal weights on all but the `num_byzantine` rows farthest from one, which counts itself."""
    distances = geometry.squared_distances()[row].sqrt()
    order = distances.index_fill(0, torch.tensor([row]), -1.0).argsort(stable=True)
    weights = torch.zeros_like(distances)
    weights[order[: len(order) - num_byzantine]] = 1 / (len(order) - num_byzantine)
    return Verdict(weights, distances, left_out(weights > 0, distances))
