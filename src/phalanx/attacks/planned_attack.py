"""Attacks that all Byzantine workers of a round plan together before they send."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.adversary_knowledge import AdversaryKnowledge
from phalanx.attacks.base import Attack, State, require_honest


@dataclass(frozen=True)
class PlannedAttack(Attack):
    """An attack that looks at the whole round first, and then comes down to a plain attack.

    The plan is made once per round, however many Byzantine workers carry it out.
    """

    @property
    def omniscient(self) -> bool:
        """True: the plan is made from the honest messages."""
        return True

    @abstractmethod
    def plan(self, view: AdversaryKnowledge, memory: State = ()) -> tuple[Attack, State]:
        """See `Attack.plan`."""

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The message of a worker that plans by itself, remembers nothing and knows no rule.

        Raises:
            ValueError: if there is no honest message.
        """
        rows = require_honest(honest, self)
        view = AdversaryKnowledge(rows, tuple(range(len(rows))), num_byzantine, generator=generator)
        return self.plan(view)[0].forge(own, rows, num_byzantine, generator)
