"""Optimal inner product manipulation: the factor that hurts the rule most."""

from dataclasses import dataclass

import torch

from phalanx.attacks.adversary_knowledge import AdversaryKnowledge
from phalanx.attacks.base import Attack, State, require_honest
from phalanx.attacks.inner_product_manipulation import InnerProductManipulation
from phalanx.attacks.line_search import most_damaging
from phalanx.attacks.optimal_a_little_is_enough import check_evaluations
from phalanx.attacks.planned_attack import PlannedAttack


@dataclass(frozen=True)
class OptimalInnerProductManipulation(PlannedAttack):
    """`InnerProductManipulation` with the `epsilon` that moves this round's aggregate farthest.

    The Byzantine workers know the rule, and try factors on it: the largest distance between the
    aggregate and the honest mean wins. Where they know no rule (none is given, or an exact code
    decodes), they take it to be the plain mean.

    Cost: `2 * evaluations + 1` aggregations per round, and a copy of all messages; one pass over
    them if the rule weighs by distances alone (`needs_distances_only`).
    Source: Xie, Koyejo, Gupta, "Fall of Empires", UAI 2019, with the line search of Allouah et al.,
    "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", AISTATS 2023,
    experiments.

    >>> import torch
    >>> honest = torch.tensor([[1.0], [2.0], [3.0], [9.0]])
    >>> def median(rows):
    ...     return rows.median(dim=0).values
    >>> attack = OptimalInnerProductManipulation()
    >>> attack(honest, num_byzantine=1, aggregate=median) < 2  # below the median: the farther side
    tensor([[True]])
    """

    evaluations: int = 20
    """Factors tried in either direction."""

    def __post_init__(self) -> None:
        check_evaluations(self.evaluations)

    def plan(self, view: AdversaryKnowledge, memory: State = ()) -> tuple[Attack, State]:
        """`InnerProductManipulation` with the best factor that was found.

        Raises:
            ValueError: if there is no honest message.
        """
        mean = require_honest(view.honest, self).mean(dim=0)
        epsilon = most_damaging(view, torch.zeros_like(mean), -mean, self.evaluations)
        return InnerProductManipulation(epsilon), ()
