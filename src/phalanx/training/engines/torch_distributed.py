"""Engine on torch.distributed: rank 0 is the server, every other rank holds a worker."""

import math
import queue
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread

import torch.distributed as dist

from phalanx.errors import EngineLostError, WorkerError
from phalanx.stragglers import WaitingPolicy
from phalanx.training.engines.base import (
    Collector,
    Engine,
    Failure,
    Replies,
    Reply,
    Session,
    Site,
    Task,
    Waiting,
    WorkerFactory,
    tell,
)
from phalanx.training.engines.deadline import Deadline
from phalanx.training.engines.packing import pack, unpack
from phalanx.training.engines.rank_messages import (
    CONTROL,
    TASKS,
    Close,
    Drop,
    Encoded,
    Make,
    Run,
    encode,
    receive,
    release,
    send,
    serve,
)

_CLOSE_S = 30.0  # that a worker which is still at a task has to drop it


@dataclass(frozen=True)
class TorchDistributed(Engine):
    """Multi-process engine on the ranks of a `torchrun` script; rank 0 is the server.

    All ranks run one script. In `join`, those from 1 on serve as workers until rank 0 leaves it::

        engine = TorchDistributed()
        with engine.join() as is_server:
            if is_server:
                phalanx.train(model, dataset, code=code, engine=engine, steps=100)

    Worker i is on rank i + 1; ranks beyond the number of workers do nothing. Messages pass from
    rank to rank by gloo, on the CPU. A worker that fails or is late is an erasure, named in
    `Replies.missing`; late ones are notified, and drop their task before the next `chunk_size`
    partitions. A rank that dies stays missing: nobody here starts processes, and `torchrun` by its
    own rule ends the others when one dies.

    Trust: torch.distributed authenticates nobody, and tasks and replies are unpickled. All ranks
    belong in one trust domain; workers may be Byzantine by fault, not by malice that executes code.

    Cost: the parameters travel to every worker in each round, one after the other if the server's
    link is what bounds them.
    """

    deadline_s: float = 60.0
    """Seconds from the start of a round after which a message is late, whatever the policy says."""

    policy: WaitingPolicy | None = None
    """When a round is over; by default when all workers that have a task have answered."""

    chunk_size: int | None = 1
    """Partitions whose gradients a worker computes by one call; see `Ray.chunk_size`."""

    start_timeout_s: float = 120.0
    """Seconds that a start waits for workers; those not ready join later."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "start_timeout_s"):
            seconds = getattr(self, name)
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {seconds}")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")

    @contextmanager
    def join(self) -> Iterator[bool]:
        """Whether this is the server's rank; the others serve here, until it leaves the block.

        Makes the process group from the variables that `torchrun` sets, unless there is one.

        Raises:
            ValueError: if there is a process group without gloo.
        """
        if not dist.is_initialized():
            # Workers wait between rounds, for as long as the server takes.
            dist.init_process_group("gloo", timeout=timedelta(days=30))
        _require_gloo()
        if dist.get_rank() != 0:
            serve()
            yield False
            return
        try:
            yield True
        finally:
            release(range(1, dist.get_world_size()))

    def start(self, factory: WorkerFactory) -> "TorchDistributedSession":
        """Makes the workers where `join` serves.

        Raises:
            ValueError: if there is no process group with gloo, this is not rank 0, or there are
                too few ranks.
            WorkerError: if all workers fail to start.
        """
        if not dist.is_initialized():
            raise ValueError("a process group must be there: see TorchDistributed.join")
        _require_gloo()
        rank, size = dist.get_rank(), dist.get_world_size()
        if rank != 0:
            raise ValueError(f"the server must be rank 0, got rank {rank}; see join")
        if size <= factory.num_workers:
            raise ValueError(
                f"ranks must be at least {factory.num_workers + 1}, one for the server and one for "
                f"each worker, got {size}"
            )
        return TorchDistributedSession(self, factory)


def _require_gloo() -> None:
    backend = dist.get_backend_config()
    if "gloo" not in backend:
        raise ValueError(f"the process group must have the backend gloo, got {backend}")


class TorchDistributedSession(Session):
    """Session of workers on the other ranks."""

    def __init__(self, engine: TorchDistributed, factory: WorkerFactory) -> None:
        self._engine, self._factory, self.policy = engine, factory, engine.policy
        self._packed = factory.packed()
        self._links = [_Link(worker) for worker in range(factory.num_workers)]
        self._make(range(factory.num_workers))
        self._await_start()

    def call(
        self,
        task: Task,
        workers: Collection[int],
        waiting: Waiting = Waiting(),  # noqa: B008 - immutable
        collector: Collector | None = None,
    ) -> Replies:
        """Sends the task out, and takes replies in until all are here or late.

        Raises:
            WorkerError: if nobody answers, and somebody raised an exception.
            EngineLostError: if all ranks asked are gone.
        """
        began, collector = time.monotonic(), collector or Collector()
        wait = Deadline(self._engine.deadline_s, self._factory.num_workers, began, waiting)
        answers: _Answers = queue.SimpleQueue()
        missing, pending = dict[int, str](), set[int]()
        failures = dict[int, Failure]()
        encoded = encode(Run(pack(task)))
        for worker in workers:
            reason = self._links[worker].obstacle(task)
            if reason is None:
                pending.add(worker)
                self._links[worker].ask(encoded, answers, concurrent=task.concurrent)
            else:
                missing[worker] = reason
        while pending:
            try:
                worker, answer = answers.get(timeout=wait.left_s())
            except queue.Empty:
                break
            pending.discard(worker)
            if isinstance(answer, Failure):
                failures[worker], missing[worker] = answer, _reason(answer)
            elif answer is None:
                missing[worker] = "dead"
            elif answer.missing is not None:
                collector.refuse(worker, answer.missing)
            else:
                value = unpack(answer.value)
                self._factory.heard(worker, value)
                collector.take(worker, value)
                wait.see(worker, collector)
        for worker in pending:
            missing[worker] = "late"
            if not task.concurrent:
                self._links[worker].drop()
        self._require_somebody(f"nobody answered in round {task.step}", workers, missing, failures)
        return Replies(missing, time.monotonic() - began, None, wait.remember(), failures)

    def dismiss(self, workers: Collection[int]) -> None:
        """See `Session.dismiss`; their ranks do nothing from then on."""
        for worker in workers:
            self._links[worker].dismissed = True

    def restart(self, workers: Collection[int]) -> None:
        """See `Session.restart`; in the same processes."""
        self._make(workers)

    def close(self) -> None:
        """Has the ranks drop what they are at, and wait for the next session."""
        for link in self._links:
            link.drop()
            link.close()
        end = time.monotonic() + _CLOSE_S
        hung = [one.worker for one in self._links if not one.ended(end - time.monotonic())]
        self._links = []
        if hung:
            raise EngineLostError(
                f"workers {hung} have not dropped their task in {_CLOSE_S:.0f} s: their ranks "
                "cannot be used again"
            )

    def _make(self, workers: Collection[int]) -> None:
        site = Site(chunk_size=self._engine.chunk_size)
        for worker in workers:
            own = pack(self._factory.own(worker))
            self._links[worker].make(encode(Make(worker, self._packed, own, site)))

    def _await_start(self) -> None:
        end = time.monotonic() + self._engine.start_timeout_s
        found = {one.worker: one.started(end - time.monotonic()) for one in self._links}
        failures = {worker: one for worker, one in found.items() if isinstance(one, Failure)}
        missing = {worker: _reason(failure) for worker, failure in failures.items()}
        what = "no worker of the engine TorchDistributed could start"
        try:
            self._require_somebody(what, list(found), missing, failures)
        except WorkerError:
            self.close()
            raise

    def _require_somebody(
        self,
        what: str,
        workers: Collection[int],
        missing: dict[int, str],
        failures: dict[int, Failure],
    ) -> None:
        """Raises if nobody answered, unless somebody was just late."""
        if len(missing) < len(workers) or not workers:
            return
        if failures:
            first = min(failures)
            reasons = {worker: missing[worker] for worker in failures}
            error = WorkerError(f"{what}; worker {first} {reasons[first]}", reasons=reasons)
            tell(error, failures)
            raise error
        if all(reason == "dead" for reason in missing.values()):
            raise EngineLostError(f"{what}: the ranks of all workers are gone")


_Answers = queue.SimpleQueue[tuple[int, Reply | Failure | None]]
"""Replies as they come; None from a worker whose rank is gone."""


class _Link:
    """Connection to the rank of a worker: a thread for its tasks, and one beside it."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.dismissed = False
        self._handed, self._answered = 0, 0  # tasks: each is counted by one thread alone
        self._lost = False
        self._ready: Reply | Failure | None = None
        self._starts: _Answers = queue.SimpleQueue()
        self._channels = {tag: _Channel(worker + 1, tag) for tag in (TASKS, CONTROL)}

    def obstacle(self, task: Task) -> str | None:
        """Why the worker gets no task now; None if it can."""
        if self.dismissed:
            return "excluded"
        if self._lost:
            return "dead"
        made = self.started(0.0)
        if made is None and not task.queued:
            return "starting"
        if isinstance(made, Failure):
            return _reason(made)
        waits = task.concurrent or task.queued
        return "busy" if self._handed > self._answered and not waits else None

    def started(self, seconds: float) -> Reply | Failure | None:
        """What came of the last start; None if nothing came yet, or the rank is gone."""
        if self._ready is None and not self._lost:
            try:
                _, self._ready = self._starts.get(timeout=max(0.0, seconds))
            except queue.Empty:
                return None
            self._lost = self._ready is None
        return self._ready

    def make(self, message: Encoded) -> None:
        """Has the worker made, anew if there is one."""
        if not (self._lost or self.dismissed):
            self._ready, self._starts = None, queue.SimpleQueue()
            self._hand(TASKS, message, self._starts)

    def ask(self, message: Encoded, answers: _Answers, *, concurrent: bool) -> None:
        """Gives the worker a task; the answer is put into `answers`."""
        self._hand(CONTROL if concurrent else TASKS, message, answers)

    def drop(self) -> None:
        """Tells the worker that nobody waits for its tasks so far."""
        if self._handed > self._answered and not self._lost:
            self._channels[CONTROL].put(encode(Drop(self._handed)), None)

    def close(self) -> None:
        """Ends the threads once what was asked is answered."""
        for channel in self._channels.values():
            channel.put(encode(Close()), None)
            channel.end()

    def ended(self, seconds: float) -> bool:
        """Whether the threads have ended."""
        end = time.monotonic() + seconds
        return all(one.has_ended(end - time.monotonic()) for one in self._channels.values())

    def _hand(self, tag: int, message: Encoded, answers: _Answers) -> None:
        counted = tag == TASKS
        self._handed += counted

        def take(answer: Reply | Failure | None) -> None:
            self._answered += counted
            self._lost = self._lost or answer is None
            answers.put((self.worker, answer))

        self._channels[tag].put(message, take)


class _Channel(Thread):
    """Thread that passes messages to a rank, one after the other, and its answers back."""

    def __init__(self, rank: int, tag: int) -> None:
        super().__init__(daemon=True, name=f"phalanx-rank-{rank}-{tag}")
        self._rank, self._tag = rank, tag
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()  # type: ignore[type-arg]
        self.start()

    def put(self, message: Encoded, take: object) -> None:
        """Has a message sent; `take` is called with the answer, if one is expected."""
        self._waiting.put((message, take))

    def end(self) -> None:
        """Ends the thread after what was put."""
        self._waiting.put(None)

    def has_ended(self, seconds: float) -> bool:
        """Whether the thread ends in so many seconds."""
        self.join(max(0.0, seconds))
        return not self.is_alive()

    def run(self) -> None:
        """Sends and receives; a rank that is gone answers None to everything."""
        lost = False
        while (work := self._waiting.get()) is not None:
            message, take = work
            answer = None
            if not lost:
                try:
                    send(message, self._rank, self._tag)
                    answer = receive(self._rank, self._tag) if take is not None else None
                except RuntimeError:  # of gloo: the connection is closed
                    lost = True
            if take is not None:
                take(answer)


def _reason(failure: Failure) -> str:
    """The exception in one line."""
    first, *_ = str(failure.error).strip().splitlines() or [""]
    return f"failed: {type(failure.error).__name__}: {first}"
