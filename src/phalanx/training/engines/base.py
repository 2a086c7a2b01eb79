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
from phalanx.errors import WireError
from phalanx.training.job import Job
from phalanx.training.worker_state import Memory
from phalanx.transforms.compressed import MessageCodec

# Not `typing.Self`: the runtime checks of the tests read annotations one function at a time.
_Session = TypeVar("_Session", bound="Session")


class Collected(NamedTuple):
    """What reached the server in one round.

    Attributes:
        messages: `(workers, width)`; rows that did not arrive hold anything.
        arrived: `(workers,)` bool, whose message arrived in time and in shape.
        losses: `(workers,)`, mean loss that each worker claims over its partitions; NaN if unknown.
        missing: why there is no message: "silent", "late", "dead", "busy" (still at an earlier
            round), "starting", "excluded", "wrong shape", "wrong type", "malformed" (bytes that are
            no message of the compressor), "not finite" (nothing to compress) or "failed: ...", by
            worker.
        compute_s: seconds until the messages stood ready.
        memory: of workers, drill and waiting, for the next round.
        virtual_s: seconds that the round took on the engine's virtual clock; None if it has none.
        message_bytes: bytes of the messages that arrived, without what a transport adds; None if
            the engine does not count them.
    """

    messages: Float[Tensor, "workers width"]
    arrived: Bool[Tensor, " workers"]
    losses: Float[Tensor, " workers"]
    missing: dict[int, str]
    compute_s: float
    memory: Memory = Memory()
    virtual_s: float | None = None
    message_bytes: int | None = None


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
            memory: of workers, drill and waiting: `Collected.memory` of the round before.
            aggregate: the server's rule as it stands in this round, for attacks that know it; None
                if it has none, or there is no drill.
        """

    def recall(self, step: int, memory: Memory) -> Memory:
        """The memory that a checkpoint needs: with what only the workers know.

        Args:
            step: the round to go on with; the last one that was run, or the one after.
            memory: what the server remembers before that round.
        """
        return memory

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
        codec: what reads messages that come as bytes; None if they come as they are.
    """

    def __init__(
        self, messages: Float[Tensor, "workers width"], codec: MessageCodec | None = None
    ) -> None:
        self.messages = messages
        self._codec = codec
        self.clear()

    def clear(self) -> None:
        """Starts a round: nobody has arrived."""
        self.arrived = torch.zeros(len(self.messages), dtype=torch.bool)
        self.losses = torch.full((len(self.messages),), torch.nan, dtype=torch.float64)
        self.missing: dict[int, str] = {}
        self._num_bytes = torch.zeros(len(self.messages), dtype=torch.int64)

    def put(self, worker: int, message: object, loss: float = torch.nan) -> None:
        """Takes a message in, or marks its sender: a bad message never stops the run."""
        values = self._opened(message)
        if isinstance(values, str):
            self.refuse(worker, values)
            return
        assert isinstance(message, Tensor)
        self._num_bytes[worker] = message.nbytes
        if self.messages[worker].data_ptr() != values.data_ptr():
            self.messages[worker] = values
        self.arrived[worker] = True
        self.losses[worker] = loss
        self.missing.pop(worker, None)

    def refuse(self, worker: int, reason: str) -> None:
        """Records why there is no message from a worker."""
        self.arrived[worker] = False
        self.missing[worker] = reason

    def usable(self, worker: int) -> bool:
        """Whether a worker's message is here, and finite: decoders take others for missing."""
        return bool(self.arrived[worker]) and bool(self.messages[worker].isfinite().all())

    def arrivals(self, answers: Float[Tensor, " workers"]) -> Float[Tensor, " workers"]:
        """What a waiting policy is told: when each usable message came, and infinity for others.

        Args:
            answers: when each worker answered, whatever it sent, in seconds.
        """
        usable = torch.tensor([self.usable(worker) for worker in range(len(answers))])
        return torch.where(usable, answers, torch.inf)

    def collected(
        self, compute_s: float, memory: Memory, virtual_s: float | None = None
    ) -> Collected:
        """The round's outcome."""
        missing = dict(sorted(self.missing.items()))
        num_bytes = int(self._num_bytes[self.arrived].sum())
        return Collected(
            self.messages,
            self.arrived,
            self.losses,
            missing,
            compute_s,
            memory,
            virtual_s,
            num_bytes,
        )

    def _opened(self, message: object) -> Tensor | str:
        """The values of a message, or why it is none."""
        if not isinstance(message, Tensor):
            return "wrong type"
        if self._codec is not None:
            try:
                return self._codec.decode(message.to(self.messages.device))
            except WireError:
                return "malformed"
        if message.dtype != self.messages.dtype:
            return "wrong type"
        return "wrong shape" if message.shape != self.messages.shape[1:] else message
