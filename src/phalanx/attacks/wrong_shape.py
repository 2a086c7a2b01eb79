"""Attack by messages of the wrong length."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class WrongShape(Attack):
    """The true message with zeros appended, or cut short, as of another model's worker.

    A server that trusts lengths crashes, or reads beside its buffer.

    Cost: one copy of the message.

    >>> import torch
    >>> WrongShape(extra=2).forge(torch.tensor([1.0, -0.5]), None, num_byzantine=1)
    tensor([ 1.0000, -0.5000,  0.0000,  0.0000])
    >>> WrongShape(extra=-1).forge(torch.tensor([1.0, -0.5]), None, num_byzantine=1)
    tensor([1.])
    """

    extra: int = 1
    """Numbers too many in the message; too few if negative."""

    def __post_init__(self) -> None:
        if self.extra == 0:
            raise ValueError("extra must not be 0, got 0")

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " width"]:
        """The message, too long or too short."""
        if self.extra < 0:
            return own[: self.extra].clone()
        return torch.cat([own, own.new_zeros(self.extra)])
