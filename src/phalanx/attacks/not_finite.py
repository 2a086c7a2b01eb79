"""Attack by messages of NaN or infinity."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class NotFinite(Attack):
    """NaN or an infinity in every coordinate, as overflow and broken memory do.

    One such message turns every weight into NaN where it is averaged in.

    Cost: one pass over the message.

    >>> import torch
    >>> NotFinite("-inf").forge(torch.tensor([1.0, -0.5]), None, num_byzantine=1)
    tensor([-inf, -inf])
    """

    value: Literal["nan", "inf", "-inf"] = "nan"
    """What is sent in every coordinate; on the command line write `=-inf`, in one word."""

    def __post_init__(self) -> None:
        if self.value not in ("nan", "inf", "-inf"):
            raise ValueError(f"value must be nan, inf or -inf, got {self.value!r}")

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The message of NaN or infinity."""
        return torch.full_like(own, float(self.value))
