"""What an engine does: it moves messages. Everything else is the same on all of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.attacks import Rule
from phalanx.training.job import Job
from phalanx.training.memory import Memory

# Not `typing.Self`: the runtime checks of the tests read annotations one function at a time.
_Session = TypeVar("_Session", bound="Session")


class Collected(NamedTuple):
    """What reached the server in one round.

    Attributes:
        messages: `(workers, width)`; rows that did not arrive hold anything.
        arrived: `(workers,)` bool, whose message arrived in time and in shape.
        losses: `(workers,)`, mean loss that each worker claims over its partitions; NaN if unknown.
        missing: why there is no message: "silent", "late", "dead", "busy" (still at an earlier
            round), "starting", "excluded", "wrong shape", "wrong type" or "failed: ...", by worker.
        compute_s: seconds until the messages stood ready.
        memory: of workers and drill, for the next round.
    """

    messages: Float[Tensor, "workers width"]
    arrived: Bool[Tensor, " workers"]
    losses: Float[Tensor, " workers"]
    missing: dict[int, str]
    compute_s: float
    memory: Memory = Memory()


class Session(ABC):
    """A run's workers, started; a context manager that stops them."""

    @abstractmethod
    def round(
        self,
        step: int,
        parameters: Float[Tensor, " dim"],
        memory: Memory = Memory(),  # noqa: B008 - frozen
        aggregate: Rule | None = None,
    ) -> Collected:
        """Has every worker compute and send its message for one round.

        Args:
            step: the round, counted from 0.
            parameters: the round's.
            memory: of workers and drill: `Collected.memory` of the round before.
            aggregate: the server's rule as it stands in this round, for attacks that know it; None
                if it has none, or there is no drill.
        """

    def exclude(self, workers: Iterable[int]) -> None:
        """Gives these workers no more tasks: from now on they are missing as "excluded".

        Raises:
            NotImplementedError: if there are any, and the engine cannot do without them.
        """
        if found := list(workers):
            raise NotImplementedError(f"{type(self).__name__} cannot exclude workers {found}")

    def close(self) -> None:  # noqa: B027 - most engines have nothing to stop
        """Stops the workers."""

    def __enter__(self: _Session) -> _Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Engine(ABC):
    """Where the workers run."""

    @abstractmethod
    def start(self, job: Job) -> Session:
        """Starts the workers of a run."""


class Inbox:
    """The server's table of messages: every row is checked before it is taken.

    The table is written in place, so that a round costs no second copy of the messages.

    Args:
        messages: `(workers, width)`, the table; its shape and dtype are what messages must have.
    """

    def __init__(self, messages: Float[Tensor, "workers width"]) -> None:
        self.messages = messages
        self.clear()

    def clear(self) -> None:
        """Starts a round: nobody has arrived."""
        self.arrived = torch.zeros(len(self.messages), dtype=torch.bool)
        self.losses = torch.full((len(self.messages),), torch.nan, dtype=torch.float64)
        self.missing: dict[int, str] = {}

    def put(self, worker: int, message: object, loss: float = torch.nan) -> None:
        """Takes a message in, or marks its sender: a bad message never stops the run."""
        reason = self._refusal(message)
        if reason is None:
            assert isinstance(message, Tensor)
            if self.messages[worker].data_ptr() != message.data_ptr():
                self.messages[worker] = message
            self.arrived[worker] = True
            self.losses[worker] = loss
            self.missing.pop(worker, None)
        else:
            self.refuse(worker, reason)

    def refuse(self, worker: int, reason: str) -> None:
        """Records why there is no message from a worker."""
        self.arrived[worker] = False
        self.missing[worker] = reason

    def collected(self, compute_s: float, memory: Memory) -> Collected:
        """The round's outcome."""
        missing = dict(sorted(self.missing.items()))
        return Collected(self.messages, self.arrived, self.losses, missing, compute_s, memory)

    def _refusal(self, message: object) -> str | None:
        if not isinstance(message, Tensor) or message.dtype != self.messages.dtype:
            return "wrong type"
        if message.shape != self.messages.shape[1:]:
            return "wrong shape"
        return None
