"""Zero attack, as free riders carry it out."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class Zero(Attack):
    """A message of zeros, as of a worker without data or a free rider.

    Cost: one pass over the message.

    >>> import torch
    >>> Zero().forge(torch.tensor([1.0, -0.5]), None, num_byzantine=1)
    tensor([0., 0.])
    """

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The zeros."""
        return torch.zeros_like(own)
