"""Inner product manipulation: an aggregate turned against the honest mean."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack, require_honest


@dataclass(frozen=True)
class InnerProductManipulation(Attack):
    """Minus `epsilon` times the honest mean, the same from all Byzantine workers.

    A small `epsilon` stays among the honest messages and pulls rules that go by distance towards
    zero and beyond; a large one turns the plain mean of `n` messages around, as soon as
    `epsilon f > n - f`.

    Cost: one pass over the honest messages.
    Source: Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation", UAI 2019.

    >>> import torch
    >>> honest = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    >>> InnerProductManipulation(epsilon=0.5)(honest, num_byzantine=1)
    tensor([[-1.0000, -0.5000]])
    """

    epsilon: float = 0.1
    """Length of the message in honest means; negative ones exaggerate the mean instead."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.epsilon):
            raise ValueError(f"epsilon must be finite, got {self.epsilon}")

    @property
    def omniscient(self) -> bool:
        """True: it needs the mean of the honest messages."""
        return True

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The mean, turned around; the same for every Byzantine worker.

        Raises:
            ValueError: if there is no honest message.
        """
        return require_honest(honest, self).mean(dim=0).mul_(-self.epsilon)
