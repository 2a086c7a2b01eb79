"""Protocols of several phases by which a server learns an aggregate of messages, and no message."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.training.privacy_ledger import PrivacyLedger

Message = Mapping[str, Tensor]
"""What is sent in a phase, either way: tensors by name."""

Ask = Callable[[int, str, Mapping[int, Message]], Mapping[int, object]]
"""Asks workers in a phase of an attempt, each its own request; what those sent who answered."""

_Protocol = TypeVar("_Protocol", bound="AggregationProtocol")


class Gathered(NamedTuple):
    """Aggregate of a round's messages, as a protocol gives it.

    Attributes:
        update: `(width,)` float64, the mean; zero where the round is void.
        counted: `(workers,)` bool, whose messages are in it.
        loss: mean loss that the workers claim; NaN if it is not told.
        missing: why a message is not in it, by worker.
        marked: workers that sent what nobody sends who follows the protocol.
        saturated: numbers that did not fit, and were cut down; 0 if it is not told.
    """

    update: Float[Tensor, " width"]
    counted: Bool[Tensor, " workers"]
    loss: float
    missing: dict[int, str]
    marked: list[int]
    saturated: int


@dataclass(frozen=True)
class AggregationProtocol(ABC):
    """Aggregation protocol: what workers and server say to each other after the local work.

    Workers compute their messages in the first phase, and keep them. What is a worker's part is a
    pure function, `answer`, of a request and of what the worker kept; what is the server's is
    `gather`, which asks in phases.
    """

    @abstractmethod
    def fitted(
        self: _Protocol, num_workers: int, width: int, sizes: Sequence[int], *, weighted: bool
    ) -> _Protocol:
        """The protocol with what was left open filled in.

        Args:
            num_workers: of a round.
            width: numbers of a message.
            sizes: how many samples clients hold, as far as that is known here.
            weighted: whether they count by it.

        Raises:
            ValueError: if it does not fit them.
        """

    @property
    @abstractmethod
    def last_phase(self) -> str:
        """The phase in which those are asked whose messages are in the aggregate."""

    @property
    def counts_alike(self) -> bool:
        """Whether clients must count alike, whatever samples they hold."""
        return False

    def ledger(
        self, rounds: int, sums_per_round: int, *, resume: bool = False
    ) -> PrivacyLedger | None:
        """What must be told of every round, if aggregates are differentially private by themselves.

        Args:
            rounds: of the run.
            sums_per_round: aggregates that a round makes: 2 with `Round.preparation`.
            resume: whether the run goes on, with its ledger.
        """
        return None

    @abstractmethod
    def needed(self, num_workers: int) -> int:
        """Workers that must last to the end."""

    @abstractmethod
    def gather(
        self, ask: Ask, *, step: int, preparing: bool, num_workers: int, width: int
    ) -> Gathered:
        """The server's part in a round.

        Args:
            ask: asks workers.
            step: the round.
            preparing: whether messages are those of `Round.preparation`.
            num_workers: of a round.
            width: numbers of a message.

        Raises:
            TooManyByzantineError: if too few workers last to the end.
        """

    @abstractmethod
    def answer(self, told: "Told", kept: Message) -> tuple[Message, Message]:
        """A worker's part in one phase: what it sends, and what it keeps.

        Raises:
            WireError: if the request is not what it must be.
            RequestRefusedError: if the answer would betray somebody.
        """


class Told(NamedTuple):
    """What a worker knows when it is asked in a phase.

    Attributes:
        step: the round.
        preparing: whether this is what workers compute first, see `Round.preparation`.
        place: which worker it is.
        num_workers: of a round.
        attempt: which attempt at the aggregate it is.
        phase: of the protocol.
        request: of the server; of no trusted content.
        message: its message, in the floating-point numbers that it would send to a server that it
            trusts.
        loss: that it claims.
        num_samples: of which the message is; None if messages count alike.
    """

    step: int
    preparing: bool
    place: int
    num_workers: int
    attempt: int
    phase: str
    request: Message
    message: Tensor
    loss: float
    num_samples: int | None
