"""Sign-flipping attack."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class SignFlip(Attack):
    """The worker's own message with its sign flipped.

    The message keeps its norm, so a rule that looks at norms alone sees nothing.

    Cost: one pass over the message.
    Source: Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for
    Distributed Learning from Heterogeneous Datasets", AAAI 2019, experiments ("sign-flipping").

    >>> import torch
    >>> SignFlip().forge(torch.tensor([1.0, -0.5]), None, num_byzantine=1)
    tensor([-1.0000,  0.5000])
    """

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The flipped message."""
        return -own
