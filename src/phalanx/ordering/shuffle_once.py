"""Shuffle once: the same random order in every epoch."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.ordering.base import Order
from phalanx.randomness import generator


@dataclass(frozen=True)
class ShuffleOnce(Order):
    """Shuffle once: one random order of the samples, drawn before the first epoch and kept.

    Source: Mishchenko, Khaled and Richtarik, "Random Reshuffling: Simple Analysis with Vast
    Improvements", NeurIPS 2020 (shuffle-once, Algorithm 2).

    >>> from phalanx.ordering import ShuffleOnce
    >>> first, second = (ShuffleOnce().permutation(5, epoch, 0) for epoch in (0, 7))
    >>> first.equal(second)
    True
    """

    def permutation(
        self, num_samples: int, epoch: int, *names: int | str
    ) -> Int[Tensor, " samples"]:
        """A random order, the same in every epoch."""
        return torch.randperm(num_samples, generator=generator(*names, 0))
