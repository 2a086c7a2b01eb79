"""Min-sum attack: the largest shift that no sum of distances gives away."""

from dataclasses import dataclass

from phalanx.attacks.a_little_is_enough import ALittleIsEnough
from phalanx.attacks.adversary_knowledge import AdversaryKnowledge
from phalanx.attacks.base import Attack, State, require_honest
from phalanx.attacks.column_spread import column_std
from phalanx.attacks.planned_attack import PlannedAttack
from phalanx.floats import power_of_two


@dataclass(frozen=True)
class MinSum(PlannedAttack):
    """The honest mean less `gamma` honest standard deviations, not too far from all together.

    `gamma` is the largest for which the sum of the squared distances of the forged message to the
    honest ones is at most the largest such sum of an honest one. That is where the forged message
    is as far from the honest mean as the farthest honest one, since either sum is that distance,
    squared, times the number of honest workers, plus a constant. No rule needs to be known.

    Cost: three passes over the honest messages, and two copies of them.
    Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks
    and Defenses for Federated Learning", NDSS 2021, section 4 (Min-Sum, inverse standard
    deviation).

    >>> import torch
    >>> MinSum()(torch.tensor([[1.0], [2.0], [3.0]]), num_byzantine=1)
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
        farthest = (rows - rows.mean(dim=0)).norm(dim=1).max().item()
        spread = column_std(rows).norm().item()
        return ALittleIsEnough(z=farthest / spread if spread > 0 else 0.0), ()
