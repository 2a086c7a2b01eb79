"""What every attack looks like: what an honest worker would send in, what a bad one sends out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Attack(ABC):
    """What a Byzantine worker does instead of its duty, in drills.

    An attack is a pure function of what its worker would have sent (`own`), and, if it is
    `omniscient`, of what the honest workers send. Calling it gives the messages of all bad workers:

    >>> import torch
    >>> from phalanx.attacks import ReverseGradient
    >>> ReverseGradient(scale=2.0)(torch.tensor([[1.0, 3.0], [3.0, 5.0]]), num_byzantine=1)
    tensor([[-4., -8.]])
    """

    omniscient: ClassVar[bool] = False
    """Whether `forge` reads the honest messages: such an attack needs collusion or a tapped network."""

    @abstractmethod
    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The message of one bad worker.

        Args:
            own: what this worker would have sent if it were honest; never overwritten.
            honest: what the honest workers send; None unless the attack is `omniscient`.
            num_byzantine: how many workers are bad in this round.
            generator: source of randomness, this worker's own; None draws from torch's global one.
        """

    @property
    def sends(self) -> bool:
        """Whether a message leaves the worker at all."""
        return True

    @property
    def delay_s(self) -> float:
        """Seconds by which the message is held back."""
        return 0.0

    def member(self, rank: int) -> "Attack":
        """The attack that the `rank`-th bad worker of a round carries out: this one, by default."""
        return self

    def __call__(
        self,
        honest: Float[Tensor, "honest dim"],
        num_byzantine: int,
        *,
        own: Float[Tensor, "byzantine dim"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The messages of all bad workers, `(byzantine, dim)`.

        Args:
            honest: messages of the honest workers.
            num_byzantine: how many workers are bad.
            own: what the bad workers would have sent; the mean of the honest ones if not given.
            generator: source of randomness.

        Raises:
            ValueError: if `num_byzantine` is negative, or `own` has another number of rows.
        """
        if num_byzantine < 0:
            raise ValueError(f"num_byzantine must be at least 0, got {num_byzantine}")
        if own is None:
            own = honest.mean(dim=0).expand(num_byzantine, -1)
        if len(own) != num_byzantine:
            raise ValueError(
                f"own must have one row per bad worker, got {len(own)} rows for {num_byzantine}"
            )
        if num_byzantine == 0:
            return honest.new_empty(0, honest.shape[1])
        members = [self.member(rank) for rank in range(num_byzantine)]
        return torch.stack(
            [
                bad.forge(row, honest if bad.omniscient else None, num_byzantine, generator)
                for bad, row in zip(members, own, strict=True)
            ]
        )
