"""Gradient coding by fractional repetition: groups of workers do the same work."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.coding.groups import (
    balanced_groups,
    block_assignment,
    check_stragglers,
    first_arrived,
    name,
)
from phalanx.coding.linear_code import LinearCode
from phalanx.errors import DecodeError


@dataclass(frozen=True)
class FractionalRepetition(LinearCode):
    """Exact gradients without any s workers: the first of each group of s + 1 to finish is enough.

    The workers of a group compute the same partitions, as many as they are, and send the plain sum.
    Where s + 1 does not divide the workers, some groups have more members.

    Guarantee: the mean gradient, as long as one worker of each group arrives; with replicas that
    agree to the bit, the same bits whoever is missing. Otherwise a `DecodeError`. It believes what
    arrives: against Byzantine workers take `DracoRepetition`, which is this code with 2 s + 1
    copies and votes.

    Cost: encoding s + 1 vector additions; decoding one pass over what arrived, most of it a look
    for numbers that are not finite.

    Source: Tandon, Lei, Dimakis and Karampatziakis, "Gradient Coding: Avoiding Stragglers in
    Distributed Learning", ICML 2017 (the fractional repetition scheme). Groups of unequal size are
    this package's.

    >>> import torch
    >>> from phalanx.coding import FractionalRepetition
    >>> code = FractionalRepetition(num_workers=4, num_stragglers=1)
    >>> messages = code.encode_all([torch.tensor([[1.0], [2.0], [3.0], [4.0]])])
    >>> code.decode(messages, arrived=torch.tensor([False, True, True, False])).gradient
    tensor([2.5000])
    """

    num_stragglers: int = 2
    """Workers that may be missing, whichever they are (s in the paper); below num_workers."""

    def __post_init__(self) -> None:
        check_stragglers(self.num_workers, self.num_stragglers)

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """The workers of each group, which hold the partitions of the same numbers."""
        return balanced_groups(self.num_workers, self.num_stragglers + 1)

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition: all of its group's."""
        return block_assignment(self.groups)

    @cached_property
    def weights(self) -> Float[Tensor, "workers partitions"]:
        """Ones: messages are plain sums."""
        return self.assignment.double()

    @property
    def min_workers(self) -> int:
        """All but the s that may be missing: any so many hold a worker of each group."""
        return self.num_workers - self.num_stragglers

    def coefficients(self, arrived: Bool[Tensor, " workers"]) -> Float[Tensor, " workers"]:
        """One for the first worker of each group that arrived; see `LinearCode.coefficients`."""
        chosen = torch.zeros(self.num_workers, dtype=torch.float64)
        for group, worker in zip(self.groups, first_arrived(self.groups, arrived), strict=True):
            if worker is None:
                raise DecodeError(
                    f"workers {name(group)} are all missing, and hold the same partitions; any "
                    f"{self.num_stragglers} of {self.num_workers} may be missing",
                    workers=(~arrived).nonzero().flatten().tolist(),
                    bound=0,
                )
            chosen[worker] = 1.0
        return chosen
