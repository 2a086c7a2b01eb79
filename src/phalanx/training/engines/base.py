"""Engine interface: tasks are sent to workers, and their replies collected."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from phalanx.errors import PhalanxError
from phalanx.stragglers import WaitingPolicy

# Not `typing.Self`: the runtime checks of the tests read annotations one function at a time.
_Session = TypeVar("_Session", bound="Session")


class Site(NamedTuple):
    """Placement of workers: the device and the chunk size that they compute with.

    Attributes:
        device: where to compute; None for where the model is.
        chunk_size: partitions that are computed by one call; None for as many as fit.
    """

    device: torch.device | str | None = None
    chunk_size: int | None = None


class Reply(NamedTuple):
    """Reply of a worker to a task.

    Attributes:
        value: what it sends; tensors, and tuples, lists and dictionaries of them, travel cheaply.
        missing: why it sends nothing, if so.
        delay_s: seconds by which it holds its answer back, in a simulated attack.
    """

    value: Any = None
    missing: str | None = None
    delay_s: float = 0.0


@dataclass(frozen=True)
class Task(ABC):
    """Task of the workers: a value that is sent to them."""

    concurrent: ClassVar[bool] = False
    """Whether a worker takes it up beside the task that it is at."""

    queued: ClassVar[bool] = False
    """Whether a worker that is still starting, or at another task, takes it up after that."""

    step: int
    """Which of a run's tasks it is: the round."""

    @abstractmethod
    def run(self, worker: Any, is_over: Callable[[], bool] = lambda: False) -> Reply:
        """What one worker does.

        Args:
            worker: as its `WorkerFactory` made it.
            is_over: asked now and then: whether nobody waits for the reply any more.
        """

    def run_together(self, workers: Sequence[Any]) -> Iterator[tuple[int, Reply]]:
        """The replies of workers of one process, with their places in the sequence's order."""
        for worker in workers:
            yield worker.id, self.run(worker)

    def load(self, worker: Any) -> int:
        """Units of work in it, for a virtual clock."""
        return 1


@dataclass(frozen=True)
class WorkerFactory(ABC):
    """Factory of workers, called where they run: objects with an `id` that keep their state."""

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """How many there are."""

    @abstractmethod
    def make(self, owned: Mapping[int, Any], site: Site) -> list[Any]:
        """The workers of some ids.

        Args:
            owned: what each of them is given at its start, see `own`.
            site: where they are.
        """

    def own(self, worker: int) -> Any:
        """What one worker is given whenever its process starts; asked each time."""
        return None

    def heard(self, worker: int, value: object) -> None:  # noqa: B027 - most have nothing to keep
        """Takes note of what a worker sent; called by engines that may start workers anew."""

    def packed(self) -> "WorkerFactory":
        """The factory as it travels to other processes."""
        return self

    @property
    def seed(self) -> int:
        """Of delays that are simulated."""
        return 0

    @property
    def held_bytes(self) -> int:
        """Shared memory that workers and messages take."""
        return 0


class Collector:
    """Collector of replies as they arrive; this one keeps them as they are."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    def take(self, worker: int, value: object) -> None:
        """Takes in what a worker sent."""
        self.values[worker] = value

    def refuse(self, worker: int, reason: str) -> None:
        """Records why there is nothing from a worker."""

    def usable(self, worker: int) -> bool:
        """Whether what came from a worker counts as an arrival for the waiting policy."""
        return worker in self.values


class Waiting(NamedTuple):
    """Waiting policy with its state.

    Attributes:
        policy: when a call is over; None for when all have answered.
        memory: of the calls before.
    """

    policy: WaitingPolicy | None = None
    memory: tuple[float, ...] = ()


class Failure(NamedTuple):
    """Exception of a worker.

    Attributes:
        error: the exception, as far as it could be sent.
        trace: its traceback, as text.
    """

    error: BaseException
    trace: str


NO_FAILURES: Mapping[int, Failure] = MappingProxyType({})


@contextmanager
def telling(failures: Mapping[int, Failure]) -> Iterator[None]:
    """Errors of a block that follow from failures of workers tell of one of them.

    The traceback becomes a note of a `PhalanxError`, and the exception its cause.
    """
    try:
        yield
    except PhalanxError as error:
        tell(error, failures)
        raise


def tell(error: PhalanxError, failures: Mapping[int, Failure]) -> None:
    """Adds the traceback of one of the workers that failed to an error, and who they are."""
    if failures:
        worker = min(failures)
        told = failures[worker]
        error.add_note(f"workers {sorted(failures)} failed; worker {worker}:\n{told.trace}")
        error.__cause__ = error.__cause__ or told.error


class Replies(NamedTuple):
    """Outcome of a call to all workers; what they sent is in its collector.

    Attributes:
        missing: why there is nothing from a worker, by id: "late", "dead", "busy" (still at an
            earlier task), "starting" or "failed: ...", beside what the collector refused.
        seconds: until the last message that was waited for.
        virtual_s: seconds on the engine's virtual clock; None if it has none.
        waiting: what the waiting policy remembers.
        failures: what workers raised, or died of as far as is known, by id.
    """

    missing: dict[int, str]
    seconds: float
    virtual_s: float | None
    waiting: tuple[float, ...]
    failures: Mapping[int, Failure] = NO_FAILURES


class Session(ABC):
    """Session of running workers; a context manager that stops them."""

    policy: WaitingPolicy | None = None
    """When calls are over, if the engine's user said so."""

    @abstractmethod
    def call(
        self,
        task: Task,
        workers: Collection[int],
        waiting: Waiting = Waiting(),  # noqa: B008 - immutable
        collector: Collector | None = None,
    ) -> Replies:
        """Gives workers a task, and takes their replies in until the call is over.

        Args:
            task: what to do.
            workers: who is asked.
            waiting: when the call is over; all have answered, or the deadline, by default.
            collector: what replies are put into.
        """

    def dismiss(self, workers: Collection[int]) -> None:  # noqa: B027 - most have nothing to stop
        """Stops workers that will not be asked again."""

    @abstractmethod
    def restart(self, workers: Collection[int]) -> None:
        """Starts workers anew, with what their factory has them own now."""

    def close(self) -> None:  # noqa: B027 - most engines have nothing to stop
        """Stops all workers."""

    def __enter__(self: _Session) -> _Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Engine(ABC):
    """Where workers run: what starts them and gives them tasks."""

    @abstractmethod
    def start(self, factory: WorkerFactory) -> Session:
        """Starts the workers that a factory makes."""
