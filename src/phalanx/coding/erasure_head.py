"""ErasureHead: the sum over groups whose first worker has finished, without waiting for more."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.coding.approximate_code import ApproximateCode, check_arrived, check_load
from phalanx.coding.groups import balanced_groups, block_assignment, first_arrived


@dataclass(frozen=True)
class ErasureHead(ApproximateCode):
    """Approximate gradient coding by fractional repetition: groups of workers do the same work.

    The gradient is the mean over the partitions of the groups of which some worker arrived. When
    all are covered it is exact.

    Guarantee: with stragglers drawn uniformly, a group of s is lost with the chance that all of
    them straggle, so the expected squared error falls like `(straggling share)^s`. An adversary
    who silences whole groups does the worst that can be done to any code.

    Cost: encoding s vector additions; decoding one pass over what arrived.

    Source: Wang, Charles and Papailiopoulos, "ErasureHead: Distributed Gradient Descent without
    Delays Using Approximate Gradient Coding", 2019; the one-step and optimal decoders: Charles,
    Papailiopoulos and Ellenberg, "Approximate Gradient Coding via Sparse Random Graphs", 2017. The
    official code adds what it has, so steps shrink when groups are missing: `rescale=False` here.

    >>> import torch
    >>> from phalanx.coding import ErasureHead
    >>> code = ErasureHead(num_workers=6, copies=2)
    >>> messages = code.encode_all([torch.tensor([[3.0], [3.0], [6.0], [6.0], [3.0], [9.0]])])
    >>> decoded = code.decode(messages, torch.tensor([True, True, False, True, False, False]))
    >>> decoded.gradient, round(decoded.error ** 2, 4)  # two partitions of six are not covered
    (tensor([4.5000]), 0.5)
    """

    rescale: bool = True
    """Average over the partitions that are covered. Else what is missing counts as zero, and steps
    are too short."""

    copies: int = 3
    """Workers in a group, and partitions that each of them computes (s in the paper); where it does
    not divide num_workers, some groups have more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_load("copies", self.copies, self.num_workers)

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """The workers of each group, which hold the partitions of the same numbers."""
        return balanced_groups(self.num_workers, self.copies)

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition: all of its group's."""
        return block_assignment(self.groups)

    @property
    def probabilities(self) -> Float[Tensor, "workers partitions"]:
        """Ones and zeros: nothing is drawn."""
        return self.assignment.double()

    def _weigh(self, arrived: Tensor) -> Tensor:
        if self.decoding != "optimal":
            return super()._weigh(arrived)
        chosen = torch.zeros(self.num_workers, dtype=torch.float64)
        # One of each group is as good as the mean of all, and gives the same bits whoever it is.
        first = first_arrived(self.groups, arrived)
        chosen[[worker for worker in first if worker is not None]] = 1.0
        return chosen[arrived]

    def expected_squared_error(self, num_arrived: int) -> float:
        """As for every approximate code; with the optimal decoder, the share that is not covered.

        Raises:
            ValueError: if there is no closed form.
        """
        if self.decoding != "optimal" or self.rescale:
            return super().expected_squared_error(num_arrived)
        check_arrived(num_arrived, self.num_workers)
        sets = math.comb(self.num_workers, num_arrived)
        lost = sum(
            len(group) * math.comb(self.num_workers - len(group), num_arrived)
            for group in self.groups
        )
        return lost / sets / self.num_workers
