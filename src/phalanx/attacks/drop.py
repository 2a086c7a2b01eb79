"""Packet-loss attack: a message with random coordinates lost."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class Drop(Attack):
    """The true message with random coordinates set to zero, as by lost packets.

    Cost: one draw a coordinate and one pass over the message.
    Source: Guerraoui, Guirguis, Plassmann, Ragot, Rouault, "Garfield: System Support for Byzantine
    Machine Learning", DSN 2021, the attack "drop" of its code (probability 0.3).

    >>> import torch
    >>> forged = Drop(0.3).forge(torch.ones(10_000), None, 1, torch.Generator().manual_seed(0))
    >>> forged.unique(), round(forged.mean().item(), 1)
    (tensor([0., 1.]), 0.7)
    """

    probability: float = 0.3
    """Chance of each coordinate to become zero, in [0, 1]."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {self.probability}")

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """What is left of the message."""
        device = own.device if generator is None else generator.device
        draws = torch.rand(own.shape, generator=generator, device=device)
        return own.masked_fill((draws < self.probability).to(own.device), 0.0)
