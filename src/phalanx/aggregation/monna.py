"""The mean of the messages nearest to one that is trusted."""

from dataclasses import dataclass

import torch

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import State, require_majority, require_not_negative
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.mixtures import Mixtures
from phalanx.errors import TooManyByzantineError


@dataclass(frozen=True)
class MoNNA(GeometryRule):
    """The mean of the n - f messages nearest to that of one worker, who is trusted.

    Meant for training without a server, where every worker trusts its own message. If the reference
    lies, so does the aggregate.

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

    num_byzantine: int = 1
    """Liars survived, and messages left out (f)."""

    reference: int = 0
    """The worker that is trusted."""

    def __post_init__(self) -> None:
        require_not_negative(self.num_byzantine)
        if self.reference < 0:
            raise ValueError(f"reference must be at least 0, got {self.reference}")

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`.

        Raises:
            ValueError: if it is not below half of the workers.
        """
        require_majority(self.num_byzantine, num_workers)
        return self.num_byzantine

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Equal weights on the messages nearest to that of number `reference`."""
        return nearest_to(self.reference, geometry, num_byzantine)

    def combine(
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
        return self.answer(mixtures, nearest_to(position, known, num_byzantine)), state


def nearest_to(row: int, geometry: Geometry, num_byzantine: int) -> Verdict:
    """Equal weights on all but the `num_byzantine` rows farthest from one, which counts itself."""
    distances = geometry.squared_distances()[row].sqrt()
    order = distances.index_fill(0, torch.tensor([row]), -1.0).argsort(stable=True)
    weights = torch.zeros_like(distances)
    weights[order[: len(order) - num_byzantine]] = 1 / (len(order) - num_byzantine)
    return Verdict(weights, distances, weights == 0)
