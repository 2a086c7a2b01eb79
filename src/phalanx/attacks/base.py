"""What every attack looks like: what an honest worker would send in, what a bad one sends out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

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
    def omniscient(self) -> bool:
        """Whether `forge` reads the honest messages, which takes collusion or a tapped network."""
        return False

    @property
    def sends(self) -> bool:
        """Whether a message leaves the worker at all; `forge` need not be called if not."""
        return True

    @property
    def delay_s(self) -> float:
        """Seconds by which the message is held back."""
        return 0.0

    def member(self, rank: int) -> "Attack":
        """The attack that the `rank`-th bad worker of a round carries out: this one, by default."""
        return self

    def messages(
        self,
        honest: Float[Tensor, "honest dim"],
        num_byzantine: int,
        *,
        own: Float[Tensor, "byzantine dim"] | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Tensor | None]:
        """What each bad worker sends, in order of rank; None where nothing is sent.

        Args:
            honest: messages of the honest workers.
            num_byzantine: how many workers are bad.
            own: what the bad workers would have sent; the mean of the honest ones if not given.
            generator: source of randomness.

        Raises:
            ValueError: if `num_byzantine` is negative, `own` has another number of rows, or `own`
                is missing where no worker is honest.
        """
        if num_byzantine < 0:
            raise ValueError(f"num_byzantine must be at least 0, got {num_byzantine}")
        if num_byzantine == 0:
            return []
        if own is None:
            if len(honest) == 0:
                raise ValueError("own must be given when honest has no rows, got None")
            own = honest.mean(dim=0).expand(num_byzantine, -1)
        if len(own) != num_byzantine:
            raise ValueError(
                f"own must have one row per bad worker, got {len(own)} rows for {num_byzantine}"
            )
        members = [self.member(rank) for rank in range(num_byzantine)]
        return [
            bad.forge(row, honest if bad.omniscient else None, num_byzantine, generator)
            if bad.sends
            else None
            for bad, row in zip(members, own, strict=True)
        ]

    def __call__(
        self,
        honest: Float[Tensor, "honest dim"],
        num_byzantine: int,
        *,
        own: Float[Tensor, "byzantine dim"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "sent width"]:
        """The messages that the bad workers send, stacked, in order of rank.

        A worker that sends nothing has no row; `messages` keeps its place. The width is that of
        the honest messages, unless the attack is to send another.

        Args:
            honest: messages of the honest workers.
            num_byzantine: how many workers are bad.
            own: what the bad workers would have sent; the mean of the honest ones if not given.
            generator: source of randomness.

        Raises:
            ValueError: as `messages` does, and if the messages differ in length, so that they are
                no matrix.
        """
        sent = [
            message
            for message in self.messages(honest, num_byzantine, own=own, generator=generator)
            if message is not None
        ]
        lengths = sorted({len(message) for message in sent})
        if len(lengths) > 1:
            raise ValueError(
                f"messages must be equally long to be stacked, got lengths {lengths}; "
                "`messages` gives them one by one"
            )
        return torch.stack(sent) if sent else honest.new_empty(0, honest.shape[1])
