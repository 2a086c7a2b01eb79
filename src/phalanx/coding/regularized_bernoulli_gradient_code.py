"""Regularised Bernoulli gradient code: no worker computes more than twice its share."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.coding.approximate_code import draw_assignment
from phalanx.coding.bernoulli_gradient_code import BernoulliGradientCode
from phalanx.randomness import generator


@dataclass(frozen=True)
class RegularizedBernoulliGradientCode(BernoulliGradientCode):
    """rBGC: a Bernoulli gradient code whose overloaded workers are cut back.

    Whoever draws more than 2 s partitions keeps s of them, chosen at random. So no round waits for
    a worker with much more work than the others, and no worker weighs much more than others in the
    error: the spectral norm of the assignment stays near its expectation.

    Cost: as `BernoulliGradientCode`.

    Source: Charles, Papailiopoulos and Ellenberg, "Approximate Gradient Coding via Sparse Random
    Graphs", 2017 (the regularised code).

    >>> from phalanx.coding import RegularizedBernoulliGradientCode
    >>> code = RegularizedBernoulliGradientCode(num_workers=100, expected_load=2)
    >>> int(code.assignment.sum(dim=1).max())
    4
    """

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition, drawn from the seed."""
        draw, size = generator(self.seed, "assignment"), self.expected_load
        shape = (self.num_workers, self.num_workers)
        held = draw_assignment(torch.full(shape, size / self.num_workers).double(), draw)
        for worker in (held.sum(dim=1) > 2 * size).nonzero().flatten().tolist():
            own = held[worker].nonzero().flatten()
            held[worker, own[torch.randperm(len(own), generator=draw)[size:]]] = False
        return held

    @cached_property
    def probabilities(self) -> Float[Tensor, "workers partitions"]:
        """The same everywhere: what a worker holds on average, once cut back, by partitions."""
        number, size = self.num_workers, self.expected_load
        tosses = torch.distributions.Binomial(number, torch.tensor(size / number).double())
        loads = torch.arange(number + 1).double()
        kept = torch.where(loads > 2 * size, float(size), loads)
        chance: Tensor = (tosses.log_prob(loads).exp() * kept).sum() / number
        return chance.expand(number, number)
