"""Silence of a crashed or disconnected worker, as an attack."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class Silence(Attack):
    """No message, as of a crashed or disconnected worker: the server sees an erasure.

    Cost: none.

    >>> import torch
    >>> Silence().messages(torch.ones(3, 2), num_byzantine=2)
    [None, None]
    """

    @property
    def sends(self) -> bool:
        """False: nothing leaves the worker."""
        return False

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "0"]:
        """Nothing: no number at all, in the worker's dtype."""
        return own.new_empty(0)
