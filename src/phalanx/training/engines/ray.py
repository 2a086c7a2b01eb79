"""Ray engine: this process is the server, workers are Ray actors on many machines."""

import math
import os
import re
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

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
from phalanx.training.engines.ray_connection import (
    STORE_BYTES,
    connect,
    has_ended,
    import_ray,
    raylet_process,
)

_SIGNALS = "signals"
_LOOK_S = 0.3  # between looks whether Ray is still there
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Ray(Engine):
    """Multi-process engine on this machine or a Ray cluster; this process is the server.

    The server sends the data set and the model once, and the parameters once per round; it takes
    one message from each worker, until the deadline. A worker that dies, hangs, fails or is late is
    an erasure: it is named in `Replies.missing`, the round goes on without it, and it comes back;
    started anew if it died or hung, with its next task if it was slow. No worker is given a second
    task before it is done with the first; but late ones are notified that the round is over, and
    drop it before the next `chunk_size` partitions, so that nothing piles up. What is trained is
    with the server: it writes the checkpoints, and Ctrl-C reaches it alone. What their stages
    remember workers keep; the server asks for it when it writes a checkpoint. A worker that is
    started anew goes on with what the server knows: with its last momentum, if that is what it
    sends, or with what it remembered at the last checkpoint. Where nobody answers, and not for want
    of time, the run stops with the exception of one of the workers (`WorkerError`); where Ray's own
    process on this machine dies, it stops with an `EngineLostError`, unless Ray ends this process
    first (exit code 1, without a word); either way it resumes from its last checkpoint.

    In a simulated attack, Byzantine workers forge, and sleep, in their own processes; only attacks
    that read the honest messages are staged by the server. A silent worker says that it sends
    nothing, so that a simulation does not cost a deadline per round. One that the attack `Delay`
    holds back is deaf to the server as long, and busy in the rounds that it misses. With the same
    seed, `Local(chunk_size=1)` gives the same bits for codes that add gradients up, where workers
    and server have equal hardware, software and numbers of threads.

    Trust: Ray authenticates nobody, and unpickles what it is sent. Whoever reaches its ports runs
    code on every machine. Server and workers belong in one trust domain, behind one firewall:
    workers may be Byzantine by fault, not by malice that executes code.

    Cost: for the server, memory for the messages, `(workers, width)`, in its table and again in
    shared memory; for a worker, for the gradients that it owns. Needs `pip install 'phalanx[ray]'`.
    """

    address: str | None = None
    """Address of a running cluster, such as '10.0.0.1:6379' or 'auto'; by default Ray is started on
    this machine for the run. A connection that this process has to Ray already is used as it is."""

    deadline_s: float = 60.0
    """Seconds from the start of a round after which a message is late, whatever the policy says."""

    policy: WaitingPolicy | None = None
    """When a round is over; what arrives later is late, and dropped. By default when all workers
    that have a task have answered. Messages that are not finite do not count as arrived; what is
    there by the time the round is over is taken, however many that are."""

    chunk_size: int | None = 1
    """Partitions whose gradients a worker computes by one call; 1 uses the kernels of
    `Local(chunk_size=1)`. None takes as many as fit in 256 MiB."""

    threads_per_worker: int = 1
    """Threads of torch in each worker."""

    cpus_per_worker: float = 0.01
    """Cores that Ray sets aside for each worker: for placement, it limits nothing. Small by
    default, so that many workers fit on few cores."""

    gpus_per_worker: float = 0.0
    """GPUs, or the share of one, that each worker gets and computes on; 0 computes on the CPU."""

    restart_after_s: float = 300.0
    """Seconds at the same task after which a worker is taken to hang, and started anew."""

    start_timeout_s: float = 120.0
    """Seconds that the first round waits for workers to start; those not ready join later."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "restart_after_s", "start_timeout_s"):
            seconds = getattr(self, name)
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {seconds}")
        if self.restart_after_s < self.deadline_s:
            raise ValueError(
                f"restart_after_s must be at least deadline_s = {self.deadline_s}, got "
                f"{self.restart_after_s}"
            )
        for name in ("chunk_size", "threads_per_worker"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        for name in ("cpus_per_worker", "gpus_per_worker"):
            share = getattr(self, name)
            if not 0 <= share < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {share}")

    def start(self, factory: WorkerFactory) -> "RaySession":
        """Connects to Ray, or starts it, and starts the workers.

        Raises:
            ImportError: if Ray is not installed.
            ConnectionError: if nothing answers at `address`.
            WorkerError: if all workers fail to start.
        """
        return RaySession(self, factory)


class RaySession(Session):
    """Session of workers as Ray actors."""

    def __init__(self, engine: Ray, factory: WorkerFactory) -> None:
        self._ray = import_ray("the engine Ray")
        self._engine, self._factory, self.policy = engine, factory, engine.policy
        self._slots: list[_WorkerSlot] = []
        self._owns_ray, self._raylet = False, None
        with ExitStack() as stack:
            stack.callback(self.close)  # whatever interrupts the start, Ctrl-C among it
            store_bytes = STORE_BYTES + factory.held_bytes
            self._owns_ray = connect(self._ray, engine.address, store_bytes)
            self._raylet = raylet_process(self._ray)
            packed = self._ray.put(factory.packed())
            for worker in range(factory.num_workers):
                self._slots.append(_WorkerSlot(self._ray, engine, worker, factory, packed))
            self._await_start()
            stack.pop_all()

    @property
    def pids(self) -> dict[int, int]:
        """Process id of each worker that is ready, on the machine that it runs on."""
        return {slot.worker: slot.pid for slot in self._slots if slot.pid is not None}

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
            EngineLostError: if Ray's process on this machine is gone.
        """
        began, collector = time.monotonic(), collector or Collector()
        missing: dict[int, str] = {}
        self._require_ray()
        pending = self._hand_out(task, workers, missing)
        wait = Deadline(self._engine.deadline_s, self._factory.num_workers, began, waiting)
        while pending:
            left_s = wait.left_s()
            done = self._wait(list(pending), 1, min(left_s, _LOOK_S))
            if not done and left_s <= _LOOK_S:
                break
            for one in done:
                slot = pending.pop(one)
                reply = slot.receive(one, concurrent=task.concurrent)
                if isinstance(reply, str):
                    missing[slot.worker] = reply
                elif reply.missing is not None:
                    collector.refuse(slot.worker, reply.missing)
                else:
                    value = unpack(reply.value)
                    self._factory.heard(slot.worker, value)
                    collector.take(slot.worker, value)
                    wait.see(slot.worker, collector)
        for slot in pending.values():
            missing[slot.worker] = "late"
            if not task.concurrent:
                slot.drop()
        failures = self._failures(workers)
        failed = [worker for worker in missing if missing[worker].startswith(_FAILED)]
        if failed and len(missing) == len(workers):
            raise _worker_error(f"nobody answered in round {task.step}", missing, failures)
        return Replies(missing, time.monotonic() - began, None, wait.remember(), failures)

    def dismiss(self, workers: Collection[int]) -> None:
        """See `Session.dismiss`; their processes are stopped."""
        for worker in workers:
            self._slots[worker].dismiss()

    def restart(self, workers: Collection[int]) -> None:
        """See `Session.restart`."""
        for worker in workers:
            self._slots[worker].restart()

    def close(self) -> None:
        """Stops the workers, and Ray if it was started for them."""
        if not has_ended(self._raylet):
            for slot in self._slots:
                slot.stop()
        self._slots = []
        if self._owns_ray:
            self._ray.shutdown()
            self._owns_ray = False

    def _hand_out(
        self, task: Task, workers: Collection[int], missing: dict[int, str]
    ) -> "dict[Any, _WorkerSlot]":
        """Gives each worker that can take it the task; the references, and whose they are."""
        lent = self._ray.put(pack(task))
        given: dict[Any, _WorkerSlot] = {}
        for worker in workers:
            slot = self._slots[worker]
            if task.concurrent:
                if slot.pid is not None:
                    given[slot.ask(lent)] = slot
                continue
            reason = None if task.queued else slot.obstacle()
            if reason is None:
                given[slot.send(lent)] = slot
            else:
                missing[worker] = reason
        return given

    def _await_start(self) -> None:
        ready, end = [slot.ready for slot in self._slots], self._engine.start_timeout_s
        began = time.monotonic()
        while (left_s := began + end - time.monotonic()) > 0:
            if len(self._wait(ready, len(ready), min(left_s, _LOOK_S))) == len(ready):
                break
        found = {slot.worker: slot.obstacle() for slot in self._slots}
        reasons = {worker: why for worker, why in found.items() if why not in (None, "starting")}
        if len(reasons) == len(found):
            told = {worker: str(why) for worker, why in reasons.items()}
            failures = self._failures(told)
            raise _worker_error("no worker of the engine Ray could start", told, failures)

    def _wait(self, references: list[Any], number: int, seconds: float) -> Sequence[Any]:
        """The references that are done, at least so many of them unless the time is over."""
        done, _ = self._ray.wait(references, num_returns=number, timeout=seconds)
        self._require_ray()
        found: Sequence[Any] = done
        return found

    def _require_ray(self) -> None:
        """Looks whether Ray is there: once its process is gone, a call to it would end ours."""
        if has_ended(self._raylet):
            raise EngineLostError(
                f"the engine Ray is gone: its process on this machine (raylet, {self._raylet}) has "
                "ended"
            )

    def _failures(self, workers: Collection[int]) -> dict[int, Failure]:
        """What workers raised since one asked last."""
        found = {worker: self._slots[worker].failure for worker in workers}
        for worker in workers:
            self._slots[worker].failure = None
        return {worker: failure for worker, failure in found.items() if failure is not None}


class _WorkerSlot:
    """Slot of a worker, which outlives the processes that fill it."""

    def __init__(
        self, ray: ModuleType, engine: Ray, worker: int, factory: WorkerFactory, packed: Any
    ) -> None:
        self._ray, self._engine, self.worker = ray, engine, worker
        self._factory, self._packed = factory, packed
        self.pid: int | None = None  # known once the worker is ready
        self._task: Any = None  # the task that it is at, if any
        self._sent = 0.0
        self._number = 0  # of the task: which the worker is asked to drop
        self._dropped: Any = None  # held, else Ray complains if nobody can be notified any more
        self._dismissed = False
        self.failure: Failure | None = None  # what it raised last
        self._actor: Any
        self.ready: Any
        self._start()

    def obstacle(self) -> str | None:
        """Why the worker gets no task now; None if it can. Restarts it if it hangs."""
        if self._dismissed:
            return "excluded"
        if self.pid is None:
            return self._obstacle_at_start()
        if self._task is None or self._done(self._task):
            self._task = None  # if it came late, its message is dropped unread
            return None
        if time.monotonic() - self._sent > self._engine.restart_after_s:
            self.restart()
            return "starting"
        return "busy"

    def send(self, task: Any) -> Any:
        """Gives the worker a task; returns the reference to the reply."""
        self._sent = time.monotonic()
        self._number += 1
        self._task = self._actor.run.remote(self._number, task)
        return self._task

    def ask(self, task: Any) -> Any:
        """Gives the worker a task beside the one that it is at."""
        return self._actor.run_beside.options(concurrency_group=_SIGNALS).remote(task)

    def drop(self) -> None:
        """Tells the worker that nobody waits for its task any more."""
        notified = self._actor.drop.options(concurrency_group=_SIGNALS)
        self._dropped = notified.remote(self._number)

    def receive(self, reference: Any, *, concurrent: bool) -> Reply | str:
        """The reply that came, or the reason why there is none."""
        errors = self._ray.exceptions
        if not concurrent:
            self._task = None
        try:
            reply: Reply = self._ray.get(reference, timeout=self._engine.deadline_s)
        except errors.RayActorError as error:
            self.failure = _failure(error)
            if not concurrent:
                self.restart()
            return "dead"
        except errors.RayError as error:
            self.failure = _failure(error)
            return _reason(self.failure)
        return reply

    def dismiss(self) -> None:
        """Ends the worker for good."""
        if not self._dismissed:
            self._dismissed, self.pid = True, None
            self.stop()

    def stop(self) -> None:
        """Kills the process, whatever it is at."""
        self._ray.kill(self._actor)

    def _start(self) -> None:
        engine = self._engine
        self.pid = self._task = None
        kind = self._ray.remote(
            num_cpus=engine.cpus_per_worker,
            num_gpus=engine.gpus_per_worker,
            scheduling_strategy="SPREAD",  # else Ray fills up one machine first
            concurrency_groups={_SIGNALS: 1},  # a thread that listens while another computes
        )
        self._actor = kind(_Actor).remote()
        device = "cuda" if engine.gpus_per_worker > 0 else "cpu"
        site = Site(device, engine.chunk_size)
        own = pack(self._factory.own(self.worker))
        self.ready = self._actor.prepare.remote(
            self.worker, self._packed, own, site, engine.threads_per_worker
        )

    def restart(self) -> None:
        """Puts a new process in the place of the old one."""
        self.stop()
        self._start()

    def _obstacle_at_start(self) -> str | None:
        if not self._done(self.ready):
            return "starting"
        try:
            self.pid = self._ray.get(self.ready)
        except self._ray.exceptions.RayError as error:
            self.restart()
            self.failure = _failure(error)
            return _reason(self.failure)
        return None

    def _done(self, task: Any) -> bool:
        done, _ = self._ray.wait([task], timeout=0, fetch_local=False)
        return bool(done)


class _Actor:
    """Process of a worker. It starts empty, so that failures of its preparation are reported.

    Ray cannot cancel what an actor is at, short of killing it. So a second thread takes the word
    that a task is of no use any more, and the first looks for it between partitions.
    """

    _over = 0

    def prepare(
        self, worker: int, factory: WorkerFactory, own: Any, site: Site, threads: int
    ) -> int:
        """Makes the worker ready; returns the process id."""
        torch.set_num_threads(threads)
        if site.device == "cuda" and not torch.cuda.is_available():
            site = site._replace(device="cpu")
        (self._worker,) = factory.make({worker: unpack(own)}, site)
        self._device = site.device
        return os.getpid()

    def run(self, number: int, task: Task) -> Reply:
        """See `Task.run`; tasks are numbered from 1."""
        reply: Reply = unpack(task).run(self._worker, lambda: number <= self._over)
        if reply.delay_s:
            time.sleep(reply.delay_s)
        return reply._replace(value=pack(reply.value))

    def run_beside(self, task: Task) -> Reply:
        """The same, on a thread of its own."""
        reply: Reply = unpack(task).run(self._worker)
        return reply._replace(value=pack(reply.value))

    def drop(self, number: int) -> None:
        """Has the tasks up to this one dropped; on a thread of its own."""
        self._over = number


_FAILED = "failed: "


def _failure(error: Exception) -> Failure:
    """An exception as the worker raised it, if Ray wrapped it."""
    return Failure(getattr(error, "cause", None) or error, _COLOUR.sub("", str(error)).strip())


def _reason(failure: Failure) -> str:
    """The exception in one line."""
    first, *_ = str(failure.error).strip().splitlines() or [""]
    return f"{_FAILED}{type(failure.error).__name__}: {first}"


def _worker_error(what: str, missing: dict[int, str], failures: dict[int, Failure]) -> WorkerError:
    """The error of a call that nobody answered."""
    reasons = {worker: why for worker, why in missing.items() if why.startswith(_FAILED)}
    worker, reason = min(reasons.items())
    error = WorkerError(
        f"{what}: {len(reasons)} workers failed, worker {worker} with {reason[len(_FAILED) :]}",
        reasons=reasons,
    )
    tell(error, failures)
    return error
