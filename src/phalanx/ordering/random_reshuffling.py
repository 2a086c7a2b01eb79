"""Random reshuffling: every epoch in a new random order."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.ordering.base import Order
from phalanx.randomness import generator


@dataclass(frozen=True)
class RandomReshuffling(Order):
    """Random reshuffling: every epoch draws a new order of the samples, without replacement.

    Source: Mishchenko, Khaled and Richtarik, "Random Reshuffling: Simple Analysis with Vast
    Improvements", NeurIPS 2020.

    >>> from phalanx.ordering import RandomReshuffling
    >>> first, second = (RandomReshuffling().permutation(5, epoch, 0) for epoch in (0, 1))
    >>> sorted(first.tolist()) == sorted(second.tolist()) and not first.equal(second)
    True
    """

    def permutation(
        self, num_samples: int, epoch: int, *names: int | str
    ) -> Int[Tensor, " samples"]:
        """A random order that differs from epoch to epoch."""
        return torch.randperm(num_samples, generator=generator(*names, epoch))
