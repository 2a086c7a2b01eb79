"""Min-max attack: the largest shift that no distance between two workers gives away."""

from dataclasses import dataclass

import torch

from phalanx.attacks.a_little_is_enough import ALittleIsEnough
from phalanx.attacks.adversary_knowledge import AdversaryKnowledge
from phalanx.attacks.base import Attack, State, require_honest
from phalanx.attacks.column_spread import column_std
from phalanx.attacks.planned_attack import PlannedAttack
from phalanx.floats import power_of_two


@dataclass(frozen=True)
class MinMax(PlannedAttack):
    """The honest mean less `gamma` honest standard deviations, no honest message too far off.

    `gamma` is the largest for which the distance of the forged message to every honest one is at
    most the largest distance between two honest ones. No rule needs to be known. The published
    attack bisects; here each honest message gives its bound on `gamma` by a quadratic equation.

    Cost: the distances of all pairs of honest messages, and two copies of them.
    Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks
    and Defenses for Federated Learning", NDSS 2021, section 4 (Min-Max, inverse standard
    deviation).

    >>> import torch
    >>> MinMax()(torch.tensor([[1.0], [2.0], [3.0]]), num_byzantine=1)
    tensor([[1.]])
    """

    def plan(self, view: AdversaryKnowledge, memory: State = ()) -> tuple[Attack, State]:
        """`ALittleIsEnough` with the largest shift.

        Raises:
            ValueError: if there is no honest message.
        """
        rows = require_honest(view.honest, self).double()
        rows = rows / power_of_two(rows)  # a shift in standard deviations has no unit
        if len(rows) == 1:
            return ALittleIsEnough(z=0.0), ()
        offsets = rows - rows.mean(dim=0)
        spread = column_std(rows)
        # |offset + gamma spread|^2 <= limit, for every row.
        limit = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").max() ** 2
        square, slope = spread.square().sum(), offsets @ spread
        slack = limit - offsets.square().sum(dim=1)
        if square == 0:
            return ALittleIsEnough(z=0.0), ()
        bounds = ((slope.square() + square * slack).clamp(min=0).sqrt() - slope) / square
        return ALittleIsEnough(z=bounds.min().item()), ()
