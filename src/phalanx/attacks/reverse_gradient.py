"""Reversed gradient attack of the DRACO experiments."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class ReverseGradient(Attack):
    """Minus `scale` times the worker's own message.

    Enough to turn the mean around from one worker on: with `scale = c`, `f` of `n` workers do it
    when `c f > n - f`.

    Cost: one pass over the message.
    Source: Chen, Wang, Charles, Papailiopoulos, "DRACO: Byzantine-resilient Distributed Training
    via Redundant Gradients", ICML 2018, experiments ("reversed gradient", c = 100).

    >>> import torch
    >>> ReverseGradient(scale=100.0).forge(torch.tensor([1.0, -0.5]), None, num_byzantine=1)
    tensor([-100.,   50.])
    """

    scale: float = 100.0
    """Factor by which the message grows while it turns around (c in the paper)."""

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The reversed message."""
        return -self.scale * own
