"""Optimal a-little-is-enough attack: the shift that hurts the rule most."""

from dataclasses import dataclass

from phalanx.attacks.a_little_is_enough import ALittleIsEnough
from phalanx.attacks.adversary_knowledge import AdversaryKnowledge
from phalanx.attacks.base import Attack, State, require_honest
from phalanx.attacks.column_spread import column_std
from phalanx.attacks.line_search import most_damaging
from phalanx.attacks.planned_attack import PlannedAttack
from phalanx.checks import require_at_least


@dataclass(frozen=True)
class OptimalALittleIsEnough(PlannedAttack):
    """`ALittleIsEnough` with the shift, up or down, that moves this round's aggregate farthest.

    The Byzantine workers know the rule, and try shifts on it: the largest distance between the
    aggregate and the honest mean wins. Where they know no rule (none is given, or an exact code
    decodes), they take it to be the plain mean.

    Cost: `2 * evaluations + 1` aggregations per round, and a copy of all messages; one pass over
    them if the rule weighs by distances alone (`needs_distances_only`).
    Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks
    and Defenses for Federated Learning", NDSS 2021, section 4 (the attack that knows the rule),
    with the line search of Allouah et al., "Fixing by Mixing", AISTATS 2023, experiments.

    >>> import torch
    >>> honest = torch.tensor([[1.0], [2.0], [3.0], [9.0]])
    >>> def median(rows):
    ...     return rows.median(dim=0).values
    >>> attack = OptimalALittleIsEnough()
    >>> attack(honest, num_byzantine=1, aggregate=median) < 2  # below the median: the farther side
    tensor([[True]])
    """

    evaluations: int = 20
    """Shifts tried in either direction."""

    def __post_init__(self) -> None:
        check_evaluations(self.evaluations)

    def plan(self, view: AdversaryKnowledge, memory: State = ()) -> tuple[Attack, State]:
        """`ALittleIsEnough` with the best shift that was found.

        Raises:
            ValueError: if there is no honest message.
        """
        honest = require_honest(view.honest, self)
        if len(honest) == 1:  # no spread, nowhere to go
            return ALittleIsEnough(z=0.0, sign=1), ()
        shift = most_damaging(view, honest.mean(dim=0), column_std(honest), self.evaluations)
        return ALittleIsEnough(z=shift, sign=1), ()


def check_evaluations(evaluations: int) -> None:
    """Refuses a search that tries nothing."""
    require_at_least(1, evaluations=evaluations)
