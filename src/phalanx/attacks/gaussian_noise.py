"""Gaussian noise attack."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack
from phalanx.checks import require_finite_at_least


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Fresh Gaussian noise in every coordinate, each worker its own.

    Cost: one draw per coordinate, on the device of the generator.
    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent", NeurIPS 2017, experiments (mean 0, standard deviation 200).

    >>> import torch
    >>> noise = GaussianNoise(mean=3.0, standard_deviation=0.5)
    >>> message = noise.forge(torch.zeros(10_000), None, 1, torch.Generator().manual_seed(0))
    >>> round(message.mean().item(), 1), round(message.std().item(), 1)
    (3.0, 0.5)
    """

    mean: float = 0.0
    """Mean of every coordinate."""

    standard_deviation: float = 200.0
    """Standard deviation of every coordinate."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, standard_deviation=self.standard_deviation)

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The noise."""
        # Drawn where the generator lives, so that a CPU generator gives the same bits for any GPU.
        device = own.device if generator is None else generator.device
        noise = torch.randn(own.shape, generator=generator, dtype=own.dtype, device=device)
        return noise.mul_(self.standard_deviation).add_(self.mean).to(own.device)
