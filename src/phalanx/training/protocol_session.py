"""Session of an aggregation protocol: its phases as tasks of the workers of a round."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from phalanx.errors import RequestRefusedError, WireError
from phalanx.training.aggregation_protocol import AggregationProtocol, Message, Told
from phalanx.training.engines.base import Collector, Failure, Reply, Session, Task, Waiting
from phalanx.training.worker_state import WorkerState


class Phased(NamedTuple):
    """Reply of a worker in a phase.

    Attributes:
        message: what it sends.
        state: what it remembers, where it belongs to a client that may be elsewhere next time.
    """

    message: Message
    state: WorkerState | None = None


@dataclass(frozen=True)
class PhaseTask(Task):
    """Task of one phase of a protocol."""

    protocol: AggregationProtocol
    """What the worker answers by."""
    attempt: int
    """Which attempt at the aggregate it is."""
    phase: str
    """Of the protocol."""
    requests: Mapping[int, Message]
    """What each worker is sent."""
    needed: int
    """Workers that must answer."""
    preparing: bool
    """Whether messages are those of `Round.preparation`."""
    first: Task | None = None
    """What workers compute before they answer: their messages, in the first phase."""

    @property
    def last(self) -> bool:
        """Whether who is asked has its message in the aggregate."""
        return self.phase == self.protocol.last_phase

    def run(self, worker: Any, is_over: Callable[[], bool] = lambda: False) -> Reply:
        """One worker's part, by itself."""
        return (
            self._begun(worker, self.first.run(worker, is_over))
            if self.first
            else (self._answer(worker))
        )

    def run_together(self, workers: Sequence[Any]) -> Iterator[tuple[int, Reply]]:
        """The same; what is computed first is computed together."""
        if self.first is None:
            yield from super().run_together(workers)
            return
        by_id = {worker.id: worker for worker in workers}
        for place, reply in list(self.first.run_together(workers)):
            yield place, self._begun(by_id[place], reply)

    def load(self, worker: Any) -> int:
        """That of what is computed first."""
        return 0 if self.first is None else self.first.load(worker)

    def _begun(self, worker: Any, made: Reply) -> Reply:
        if made.missing is not None:
            return made
        worker.protocol = (made.value, {})
        answer = self._answer(worker)
        if answer.missing is not None:
            return answer
        return Reply(answer.value._replace(state=made.value.state), delay_s=made.delay_s)

    def _answer(self, worker: Any) -> Reply:
        """What the worker sends; nothing, if the request is refused."""
        if worker.protocol is None:
            return Reply(missing="restarted")
        sent, kept = worker.protocol
        job = worker.updates.job
        samples = None
        if job.round.weighted:
            samples = len(job.round.order.samples(job.batches, self.step, worker.id))
        told = Told(
            self.step,
            self.preparing,
            worker.id,
            job.round.code.num_workers,
            self.attempt,
            self.phase,
            self.requests[worker.id],
            sent.message,
            sent.loss,
            samples,
        )
        try:
            message, kept = self.protocol.answer(told, kept)
        except (WireError, RequestRefusedError) as error:
            return Reply(missing=f"refused: {error}")
        worker.protocol = (sent, kept)
        return Reply(Phased(message))


class _Answers(Collector):
    """Answers of workers, and why there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[int, str] = {}

    def refuse(self, worker: int, reason: str) -> None:
        """Records the reason."""
        self.reasons[worker] = reason


class ProtocolSession:
    """Phases of a protocol in a round: the server's way to ask the workers, and what that took.

    Args:
        session: the workers.
        protocol: of the round.
        first: what workers compute before they answer for the first time.
        num_workers: of a round.
        waiting: when the first phase is over, in which workers compute; all others are over when
            all have answered, or after the engine's deadline.
        preparing: whether messages are those of `Round.preparation`.
    """

    def __init__(
        self,
        session: Session,
        protocol: AggregationProtocol,
        first: Task,
        num_workers: int,
        waiting: Waiting,
        *,
        preparing: bool,
    ) -> None:
        self._session, self._protocol = session, protocol
        self._step, self._preparing = first.step, preparing
        self._first: Task | None = first
        self._needed = protocol.needed(num_workers)
        self.waiting = waiting
        self.missing: dict[int, str] = {}
        self.states: dict[int, WorkerState] = {}
        self.failures: dict[int, Failure] = {}
        self.seconds = 0.0
        self.virtual_s: float | None = None
        self.message_bytes, self.request_bytes = 0, 0

    def ask(self, attempt: int, phase: str, requests: Mapping[int, Message]) -> dict[int, object]:
        """What those send who answer, by worker."""
        task = PhaseTask(
            self._step,
            self._protocol,
            attempt,
            phase,
            requests,
            self._needed,
            self._preparing,
            self._first,
        )
        answers = _Answers()
        waiting = Waiting() if self._first is None else self.waiting
        replies = self._session.call(task, sorted(requests), waiting, answers)
        if self._first is not None:
            self._first, self.waiting = None, Waiting(waiting.policy, replies.waiting)
        self.missing |= {**answers.reasons, **replies.missing}
        self.failures |= replies.failures
        self.seconds += replies.seconds
        if replies.virtual_s is not None:
            self.virtual_s = (self.virtual_s or 0.0) + replies.virtual_s
        self.request_bytes += sum(map(_num_bytes, requests.values()))
        found: dict[int, object] = {}
        for worker, value in answers.values.items():
            if worker in replies.missing:
                continue
            message = value.message if isinstance(value, Phased) else value
            if isinstance(value, Phased) and value.state is not None:
                self.states[worker] = value.state
            self.message_bytes += _num_bytes(message)
            found[worker] = message
        return found


def _num_bytes(message: object) -> int:
    parts = message.values() if isinstance(message, Mapping) else ()
    return sum(one.nbytes for one in parts if isinstance(one, Tensor))
