"""Bernoulli gradient code: every worker holds every partition with the same small chance."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.coding.approximate_code import ApproximateCode, check_load, draw_assignment
from phalanx.randomness import generator


@dataclass(frozen=True)
class BernoulliGradientCode(ApproximateCode):
    """BGC: each worker holds each partition by the toss of a coin, s of them on average.

    Guarantee: random stragglers cost more than with `ErasureHead`, but no small set of workers
    matters much: there are no groups to silence. Finding the worst set is NP-hard in general.

    The toss may leave a partition with nobody (a share of about `exp(-s)`, an error that stays when
    all workers arrive), or a worker with nothing: it then gets one partition at random.

    Cost: encoding s vector additions on average; decoding one pass over what arrived, and with the
    optimal decoder least squares on workers x partitions for each set that arrives.

    Source: Charles, Papailiopoulos and Ellenberg, "Approximate Gradient Coding via Sparse Random
    Graphs", 2017.

    >>> import torch
    >>> from phalanx.coding import BernoulliGradientCode
    >>> code = BernoulliGradientCode(num_workers=100, expected_load=5, decoding="one-step")
    >>> round(100 * code.expected_squared_error(80), 2)  # k (k - s) / (r s)
    23.75
    """

    expected_load: int = 3
    """Partitions that a worker computes on average (s in the paper)."""

    seed: int = 0
    """Of the assignment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_load("expected_load", self.expected_load, self.num_workers)

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition, drawn from the seed."""
        return draw_assignment(self.probabilities, generator(self.seed, "assignment"))

    @property
    def probabilities(self) -> Float[Tensor, "workers partitions"]:
        """The same everywhere."""
        shape, chance = (self.num_workers,) * 2, self.expected_load / self.num_workers
        return torch.full(shape, chance, dtype=torch.float64)
