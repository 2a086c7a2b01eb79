"""Constant attack of the DRACO experiments, which ignores the data."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class Constant(Attack):
    """The same number in every coordinate.

    All Byzantine workers agree with each other to the bit, which fools rules that trust agreement.

    Cost: one pass over the message.
    Source: Chen, Wang, Charles, Papailiopoulos, "DRACO: Byzantine-resilient Distributed Training
    via Redundant Gradients", ICML 2018, experiments ("constant adversary", -100).

    >>> import torch
    >>> Constant(value=-100.0).forge(torch.tensor([1.0, -0.5]), None, num_byzantine=1)
    tensor([-100., -100.])
    """

    value: float = -100.0
    """The number that is sent in every coordinate."""

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The constant message."""
        return torch.full_like(own, self.value)
