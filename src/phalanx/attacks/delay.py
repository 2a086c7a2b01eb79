"""Delay attack: a true message that comes late."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack
from phalanx.checks import require_finite_at_least


@dataclass(frozen=True)
class Delay(Attack):
    """The true message, late: an erasure wherever the round's deadline is earlier.

    Cost: none but the wait, which the engine makes.

    >>> import torch
    >>> late = Delay(delay_s=30.0)
    >>> late.delay_s, late.forge(torch.tensor([1.0, -0.5]), None, num_byzantine=1)
    (30.0, tensor([ 1.0000, -0.5000]))
    """

    delay_s: float = 1.0
    """Seconds by which the message is held back."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, delay_s=self.delay_s)

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The worker's own message."""
        return own
