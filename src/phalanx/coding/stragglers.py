"""Interface of straggler models: which workers are silent in a round."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from phalanx.checks import require_at_least


@dataclass(frozen=True)
class Stragglers(ABC):
    """A way to choose the workers that are silent, knowing who computes what.

    Bad luck, or an adversary. In a run the chosen are bad workers (`FixedWorkers`) whose attack is
    `Silence`.
    """

    num_stragglers: int = 1
    """How many workers are silent."""

    def __post_init__(self) -> None:
        require_at_least(0, num_stragglers=self.num_stragglers)

    def __call__(
        self,
        assignment: Bool[Tensor, "workers partitions"],
        generator: torch.Generator | None = None,
    ) -> Bool[Tensor, " workers"]:
        """Which workers are silent.

        Args:
            assignment: who computes what, of a code.
            generator: for what is random; a fixed seed if None.

        Raises:
            ValueError: if there are fewer workers than stragglers.
        """
        if self.num_stragglers > len(assignment):
            raise ValueError(
                f"num_stragglers must be at most num_workers, got {self.num_stragglers} of "
                f"{len(assignment)}"
            )
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        silent = torch.zeros(len(assignment), dtype=torch.bool)
        silent[self.choose(assignment, generator)] = True
        return silent

    @abstractmethod
    def choose(
        self, assignment: Bool[Tensor, "workers partitions"], generator: torch.Generator
    ) -> list[int]:
        """Ids of the silent workers, `num_stragglers` of them."""
