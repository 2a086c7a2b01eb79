"""The engine of many processes or machines: this process is the server, workers are Ray actors."""

import math
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.attacks import Rule
from phalanx.coding import Code
from phalanx.communication.serialization import SharedTensor
from phalanx.stragglers.waiting import WaitingPolicy
from phalanx.training.attack_simulation import Drill, Role
from phalanx.training.engines.base import Collected, Engine, Inbox, Session
from phalanx.training.engines.ray_connection import STORE_BYTES, connect, import_ray
from phalanx.training.engines.worker import Recollection, Reply, Worker, pack_job
from phalanx.training.job import Job
from phalanx.training.worker_state import Memory
from phalanx.transforms.compressed import States

_SIGNALS = "signals"


@dataclass(frozen=True)
class Ray(Engine):
    """Workers as processes on this machine or a Ray cluster; this process is the server.

    The server sends the data set and the model once, and the parameters once a round; it takes one
    message from each worker, until the deadline. A worker that dies, hangs, fails or is late is an
    erasure: it is named in `Collected.missing`, the round goes on without it, and it comes back;
    started anew if it died or hung, with its next task if it was slow. No worker is given a second
    task before it is done with the first; but those that are late are told that the round is over,
    and drop it before the next `chunk_size` partitions, so that nothing piles up. What is trained
    lies with the server: it writes the checkpoints, and Ctrl-C reaches it alone. Workers keep their
    momentum, if they have one, and the server the last that it saw of each: a worker that is
    started anew goes on with that. With a compressor the server sees neither momenta nor what was
    left out of messages: it asks for both when it writes a checkpoint, and a worker that is started
    anew in between begins without.

    In a drill, bad workers forge, and sleep, in their own processes; only attacks that read the
    honest messages are staged by the server. A silent worker of a drill says that it sends nothing,
    so that a drill does not cost a deadline a round. One that the attack `Delay` holds back is deaf
    to the server as long, and busy in the rounds that it misses. With the same seed,
    `Local(chunk_size=1)` gives the same bits for codes that add gradients up, where workers and
    server have equal hardware, software and numbers of threads.

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

    def start(self, job: Job) -> "RaySession":
        """Connects to Ray, or starts it, and starts the workers.

        Raises:
            ImportError: if Ray is not installed.
            ConnectionError: if nothing answers at `address`.
            RuntimeError: if all workers fail to start.
        """
        return RaySession(self, job)


class RaySession(Session):
    """Runs a job's rounds on Ray actors; a round's messages overwrite those of the one before."""

    def __init__(self, engine: Ray, job: Job) -> None:
        self._ray = import_ray("the engine Ray")
        self._engine, self._job = engine, job
        self._inbox: Inbox | None = None
        self._seats: list[_Seat] = []
        self._owns_ray = False
        with ExitStack() as stack:
            stack.callback(self.close)  # whatever interrupts the start, Ctrl-C among it
            self._owns_ray = connect(self._ray, engine.address, _store_bytes(job))
            packed = self._ray.put(pack_job(job))
            for worker in range(job.code.num_workers):
                self._seats.append(_Seat(self._ray, engine, worker, packed))
            self._await_start()
            stack.pop_all()

    @property
    def pids(self) -> dict[int, int]:
        """Process id of each worker that is ready, on the machine that it runs on."""
        return {seat.worker: seat.pid for seat in self._seats if seat.pid is not None}

    def round(
        self,
        step: int,
        parameters: Float[Tensor, " dim"],
        memory: Memory = Memory(),  # noqa: B008 - frozen
        aggregate: Rule | None = None,
    ) -> Collected:
        """Sends the parameters out, and takes messages in until all are here or late."""
        began = time.monotonic()
        inbox = self._cleared(parameters)
        drill = Drill(self._job, step, parameters, memory, aggregate)
        pending = self._hand_out(drill, inbox, memory)
        momenta = self._known(memory)
        wait = _Wait(self._engine, self._job.code.at(step), began, memory.waiting)
        while pending:
            done, _ = self._ray.wait(list(pending), num_returns=1, timeout=wait.left_s())
            if not done:
                break
            for task in done:
                seat = pending.pop(task)
                # What is compressed is no momentum: that stays with the workers.
                seat.receive(inbox, momenta if self._job.codec is None else None)
                wait.see(seat.worker, inbox)
        for seat in pending.values():
            inbox.refuse(seat.worker, "late")
            seat.drop()
        compute_s = time.monotonic() - began
        honest = set(inbox.arrived.nonzero().flatten().tolist()) - drill.cast.keys()
        if honest:  # else there is nothing to read
            readers = [worker for worker, role in drill.cast.items() if role.attack.omniscient]
            for worker, held_back_s in drill.stage(inbox, readers).items():
                if held_back_s > self._engine.deadline_s:
                    inbox.refuse(worker, "late")
        kept = drill.remember(momenta.messages if momenta is not None else None, wait.remember())
        return inbox.collected(compute_s, kept)

    def recall(self, step: int, memory: Memory) -> Memory:
        """See `Session.recall`: asks workers that compress, which alone know what they left out.

        Those that do not answer are taken to remember nothing.
        """
        if self._job.codec is None:
            return memory
        asked = {seat.worker: seat.recall(step) for seat in self._seats if seat.pid is not None}
        momenta = None if memory.momenta is None else torch.full_like(memory.momenta, torch.nan)
        compression: list[States] = [()] * len(self._seats)
        for worker, answer in asked.items():
            try:
                known = self._ray.get(answer, timeout=self._engine.deadline_s)
            except self._ray.exceptions.RayError:
                continue
            if known is not None:
                compression[worker] = tuple(
                    tuple(part.unpack().clone() for part in state) for state in known.compression
                )
                if momenta is not None and known.momentum is not None:
                    momenta[worker] = known.momentum.unpack()
        return replace(memory, momenta=momenta, compression=tuple(compression))

    def exclude(self, workers: Iterable[int]) -> None:
        """See `Session.exclude`; their processes are stopped."""
        for worker in workers:
            self._seats[worker].exclude()

    def close(self) -> None:
        """Stops the workers, and Ray if it was started for them."""
        for seat in self._seats:
            seat.stop()
        self._seats = []
        if self._owns_ray:
            self._ray.shutdown()
            self._owns_ray = False

    def _known(self, memory: Memory) -> Inbox | None:
        """A new table of momenta: those known so far, until this round's are put in."""
        if self._job.worker_momentum is None:
            return None
        assert self._inbox is not None
        if memory.momenta is None or self._job.codec is not None:
            return Inbox(torch.full_like(self._inbox.messages, torch.nan))
        return Inbox(memory.momenta.clone())

    def _hand_out(self, drill: Drill, inbox: Inbox, memory: Memory) -> "dict[Any, _Seat]":
        """Gives each worker that can take it its task; the tasks, and whose they are."""
        lent: dict[int, Any] = {}  # by round: that of a worker that is to be behind is another
        # Attacks that read the honest messages are staged here: their workers send honest ones.
        carried = {
            worker: role for worker, role in drill.cast.items() if not role.attack.omniscient
        }
        tasks: dict[Any, _Seat] = {}
        for seat in self._seats:
            reason = seat.obstacle()
            if reason is None:
                step, parameters = drill.task(seat.worker)
                if step not in lent:
                    lent[step] = self._ray.put(SharedTensor.pack(parameters))
                role = carried.get(seat.worker)
                tasks[seat.send(step, lent[step], role, memory)] = seat
            else:
                inbox.refuse(seat.worker, reason)
        return tasks

    def _cleared(self, parameters: Tensor) -> Inbox:
        if self._inbox is None:
            code = self._job.code
            table = parameters.new_empty(code.num_workers, code.width(len(parameters)))
            self._inbox = Inbox(table, self._job.codec)
        self._inbox.clear()
        return self._inbox

    def _await_start(self) -> None:
        ready = [seat.ready for seat in self._seats]
        self._ray.wait(ready, num_returns=len(ready), timeout=self._engine.start_timeout_s)
        reasons = [seat.obstacle() for seat in self._seats]
        if all(reason is not None and reason != "starting" for reason in reasons):
            raise RuntimeError(f"no worker of the engine Ray could start; the first {reasons[0]}")


class _Wait:
    """How long a round still waits, as messages come in."""

    def __init__(self, engine: Ray, code: Code, began: float, memory: tuple[float, ...]) -> None:
        self._began, self._deadline_s, self._memory = began, engine.deadline_s, memory
        self._policy = engine.policy.for_code(code.can_decode) if engine.policy else None
        self._arrivals = torch.full((code.num_workers,), torch.inf, dtype=torch.float64)

    def left_s(self) -> float:
        """Seconds until the round is over, if no message comes."""
        return max(0.0, self._end_s() - self._passed_s())

    def see(self, worker: int, inbox: Inbox) -> None:
        """Notes when a worker answered, unless its message is of no use."""
        if self._policy is not None and inbox.usable(worker):
            self._arrivals[worker] = self._passed_s()

    def remember(self) -> tuple[float, ...]:
        """What the policy remembers once the round is over."""
        if self._policy is None:
            return self._memory
        end_s = min(self._end_s(), self._passed_s())
        return self._policy.update(self._arrivals, end_s, self._memory)

    def _end_s(self) -> float:
        if self._policy is None:
            return self._deadline_s
        return min(self._deadline_s, self._policy.ends_at(self._arrivals, self._memory).item())

    def _passed_s(self) -> float:
        return time.monotonic() - self._began


class _Seat:
    """A worker's place, which outlives the processes that fill it."""

    def __init__(self, ray: ModuleType, engine: Ray, worker: int, job: Any) -> None:
        self._ray, self._engine, self.worker, self._job = ray, engine, worker, job
        self.pid: int | None = None  # known once the worker is ready
        self._task: Any = None  # the task that it is at, if any
        self._fresh = True  # whether its process has had no task yet
        self._sent = 0.0
        self._number = 0  # of the task: what the worker is told to drop
        self._dropped: Any = None  # held, else Ray complains if nobody can be told any more
        self._excluded = False
        self._actor: Any
        self.ready: Any
        self._start()

    def obstacle(self) -> str | None:
        """Why the worker gets no task now; None if it can. Restarts it if it hangs."""
        if self._excluded:
            return "excluded"
        if self.pid is None:
            return self._obstacle_at_start()
        if self._task is None or self._done(self._task):
            self._task = None  # if it came late, its message is dropped unread
            return None
        if time.monotonic() - self._sent > self._engine.restart_after_s:
            self._restart()
            return "starting"
        return "busy"

    def send(self, step: int, parameters: Any, role: Role | None, memory: Memory) -> Any:
        """Gives the worker its task of a round; returns the reference to the reply.

        What the server knows of its memory is sent along to a process that has none yet.
        """
        self._sent = time.monotonic()
        known = _known(memory, self.worker) if self._fresh else None
        self._fresh = False
        self._number += 1
        self._task = self._actor.compute.remote(self._number, step, parameters, role, known)
        return self._task

    def drop(self) -> None:
        """Tells the worker that nobody waits for its task any more."""
        told = self._actor.drop.options(concurrency_group=_SIGNALS)
        self._dropped = told.remote(self._number)

    def recall(self, step: int) -> Any:
        """Asks the worker what it remembered before a round; returns the reference to the reply."""
        return self._actor.recall.options(concurrency_group=_SIGNALS).remote(step)

    def receive(self, inbox: Inbox, momenta: Inbox | None) -> None:
        """Takes in the reply that came, and its momentum, or the reason why there is none."""
        task, self._task = self._task, None
        errors = self._ray.exceptions
        try:
            reply: Reply = self._ray.get(task, timeout=self._engine.deadline_s)
        except errors.RayActorError:
            inbox.refuse(self.worker, "dead")
            self._restart()
        except errors.RayError as error:
            inbox.refuse(self.worker, _failure(error))
        else:
            momentum = reply.momentum or reply.message
            if momenta is not None and momentum is not None:
                momenta.put(self.worker, momentum.unpack())
            if reply.message is None:
                inbox.refuse(self.worker, reply.missing)
            else:
                inbox.put(self.worker, reply.message.unpack(), reply.loss)

    def exclude(self) -> None:
        """Ends the worker for good."""
        if not self._excluded:
            self._excluded, self.pid = True, None
            self.stop()

    def stop(self) -> None:
        """Kills the process, whatever it is at."""
        self._ray.kill(self._actor)

    def _start(self) -> None:
        engine = self._engine
        self.pid = self._task = None
        self._fresh = True
        kind = self._ray.remote(
            num_cpus=engine.cpus_per_worker,
            num_gpus=engine.gpus_per_worker,
            scheduling_strategy="SPREAD",  # else Ray fills up one machine first
            concurrency_groups={_SIGNALS: 1},  # a thread that listens while another computes
        )
        self._actor = kind(_Actor).remote()
        device = "cuda" if engine.gpus_per_worker > 0 else "cpu"
        self.ready = self._actor.prepare.remote(
            self.worker, self._job, engine.chunk_size, engine.threads_per_worker, device
        )

    def _restart(self) -> None:
        self.stop()
        self._start()

    def _obstacle_at_start(self) -> str | None:
        if not self._done(self.ready):
            return "starting"
        try:
            self.pid = self._ray.get(self.ready)
        except self._ray.exceptions.RayError as error:
            self._restart()
            return _failure(error)
        return None

    def _done(self, task: Any) -> bool:
        done, _ = self._ray.wait([task], timeout=0, fetch_local=False)
        return bool(done)


class _Actor:
    """The process of a worker. It starts empty: what fails while it is prepared, can be told.

    Ray cannot cancel what an actor is at, short of killing it. So a second thread takes the word
    that a task is of no use any more, and the first looks for it between partitions.
    """

    _over = 0

    def prepare(
        self, worker: int, job: Job, chunk_size: int | None, threads: int, device: str
    ) -> int:
        """Makes the worker ready; returns the process id."""
        if device == "cuda" and not torch.cuda.is_available():
            device = "cpu"
        self._worker = Worker(worker, job, chunk_size, threads, device)
        return os.getpid()

    def compute(
        self,
        number: int,
        step: int,
        parameters: SharedTensor,
        role: Role | None,
        known: Recollection | None,
    ) -> Reply:
        """See `Worker.compute`; tasks are numbered from 1."""
        return self._worker.compute(
            step, parameters, role, known, is_over=lambda: number <= self._over
        )

    def recall(self, step: int) -> Recollection | None:
        """See `Worker.recall`; on a thread of its own."""
        return self._worker.recall(step)

    def drop(self, number: int) -> None:
        """Has the tasks up to this one dropped; on a thread of its own."""
        self._over = number


def _known(memory: Memory, worker: int) -> Recollection | None:
    """What the server remembers of a worker's memory; None if nothing."""
    momentum = None if memory.momenta is None else SharedTensor.pack(memory.momenta[worker])
    states = memory.compression[worker] if memory.compression else ()
    if momentum is None and not states:
        return None
    return Recollection(momentum, tuple(tuple(map(SharedTensor.pack, state)) for state in states))


def _failure(error: Exception) -> str:
    """An exception in one line: the one that the worker raised, if Ray wrapped it."""
    cause = getattr(error, "cause", None) or error
    first, *_ = str(cause).strip().splitlines() or [""]
    return f"failed: {type(cause).__name__}: {first}"


def _store_bytes(job: Job) -> int:
    """Shared memory for the data, and for all that two rounds send: late messages linger."""
    parameters = [value for value in job.model.parameters() if value.requires_grad]
    dim = sum(value.numel() for value in parameters)
    size = max((value.element_size() for value in parameters), default=0)
    tables = 1 if job.worker_momentum is None else 2  # who forges, sends its momentum along
    if job.compressor is not None:
        tables += 2  # what is recalled for a checkpoint
    held = 2 * dim + tables * job.code.num_workers * job.code.width(dim)
    tensors = job.dataset.tensors if isinstance(job.dataset, TensorDataset) else ()
    return STORE_BYTES + 2 * held * size + sum(tensor.nbytes for tensor in tensors)
