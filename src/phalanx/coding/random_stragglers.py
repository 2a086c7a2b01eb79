"""Random stragglers."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from phalanx.coding.stragglers import Stragglers


@dataclass(frozen=True)
class RandomStragglers(Stragglers):
    """So many workers, drawn uniformly: slow machines and slow links.

    >>> import torch
    >>> from phalanx.coding import ErasureHead, RandomStragglers
    >>> code, draw = ErasureHead(num_workers=6, copies=2), torch.Generator().manual_seed(0)
    >>> RandomStragglers(num_stragglers=2)(code.assignment, draw).sum()
    tensor(2)
    """

    def choose(
        self, assignment: Bool[Tensor, "workers partitions"], generator: torch.Generator
    ) -> list[int]:
        """See `Stragglers`."""
        order: list[int] = torch.randperm(len(assignment), generator=generator).tolist()
        return order[: self.num_stragglers]
