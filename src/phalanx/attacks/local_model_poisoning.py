"""Local model poisoning attack on the median and the trimmed mean."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack, require_honest
from phalanx.checks import require_finite_above


@dataclass(frozen=True)
class LocalModelPoisoning(Attack):
    """Each coordinate just beyond the honest ones, on the side against the sign of their mean.

    Where the honest mean of a coordinate is 0 or more, a Byzantine worker sends a number
    between the smallest honest one and what is `factor` times farther down (a `factor`-th of it, if
    it is positive); where it is negative, likewise above the largest. Each worker draws its own.
    A median or trimmed mean is so pushed to the edge of what honest workers send, in every
    coordinate.

    Cost: two passes over the honest messages and a draw per coordinate.
    Source: Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated
    Learning", USENIX Security 2020, section 4 (trimmed mean and median, full knowledge, b = 2).

    >>> import torch
    >>> honest = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    >>> forged = LocalModelPoisoning(factor=2.0)(honest, num_byzantine=1)[0]
    >>> 0.5 <= forged[0] <= 1.0, 2.0 <= forged[1] <= 4.0
    (tensor(True), tensor(True))
    """

    factor: float = 2.0
    """How far beyond the honest numbers at most (b in the paper), above 1."""

    def __post_init__(self) -> None:
        require_finite_above(1, factor=self.factor)

    @property
    def omniscient(self) -> bool:
        """True: it needs the smallest and the largest of the honest numbers, and their mean."""
        return True

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """Numbers drawn between the edge and what lies beyond it.

        Raises:
            ValueError: if there is no honest message.
        """
        rows = require_honest(honest, self)
        downwards = rows.mean(dim=0) >= 0
        edge = torch.where(downwards, rows.amin(dim=0), rows.amax(dim=0))
        # Beyond is away from zero, unless the edge lies on the far side of zero.
        away = downwards == (edge <= 0)
        beyond = torch.where(away, edge * self.factor, edge / self.factor)
        device = own.device if generator is None else generator.device
        share = torch.rand(own.shape, generator=generator, dtype=own.dtype, device=device)
        return torch.lerp(edge, beyond, share.to(own.device))
