"""The engine of many processes or machines: this process is the server, workers are Ray actors."""

import math
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.attacks import Rule
from phalanx.training.drills import Drill, Role
from phalanx.training.engine import Collected, Engine, Inbox, Session
from phalanx.training.job import Job
from phalanx.training.memory import Memory
from phalanx.training.parcel import Parcel
from phalanx.training.ray_connection import STORE_BYTES, connect, import_ray
from phalanx.training.worker import Reply, Worker, pack_job


@dataclass(frozen=True)
class Ray(Engine):
    """Workers as processes on this machine or a Ray cluster; this process is the server.

    The server sends the data set and the model once, and the parameters once a round; it takes one
    message from each worker, until the deadline. A worker that dies, hangs, fails or is late is an
    erasure: it is named in `Collected.missing`, the round goes on without it, and it comes back;
    started anew if it died or hung, with its next task if it was slow. No worker is given a second
    task before it is done with the first. What is trained lies with the server: it writes the
    checkpoints, and Ctrl-C reaches it alone. Workers keep their momentum, if they have one, and the
    server the last that it saw of each: a worker that is started anew goes on with that.

    In a drill, bad workers forge, and sleep, in their own processes; only attacks that read the
    honest messages are staged by the server. A silent worker of a drill says that it sends nothing,
    so that a drill does not cost a deadline a round. With the same seed, `Local(chunk_size=1)`
    gives the same bits for codes that add gradients up, where workers and server have equal
    hardware, software and numbers of threads.

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
    """Seconds from the start of a round after which a message is late."""

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
        while pending:
            left = max(0.0, began + self._engine.deadline_s - time.monotonic())
            done, _ = self._ray.wait(list(pending), num_returns=1, timeout=left)
            if not done:
                break
            for task in done:
                pending.pop(task).receive(inbox, momenta)
        for seat in pending.values():
            inbox.refuse(seat.worker, "late")
        compute_s = time.monotonic() - began
        honest = set(inbox.arrived.nonzero().flatten().tolist()) - drill.cast.keys()
        if honest:  # else there is nothing to read
            readers = [worker for worker, role in drill.cast.items() if role.attack.omniscient]
            drill.stage(inbox, readers, self._engine.deadline_s)
        kept = drill.remember(momenta.messages if momenta is not None else None)
        return inbox.collected(compute_s, kept)

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
        if memory.momenta is None:
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
                    lent[step] = self._ray.put(Parcel.pack(parameters))
                momentum = None if memory.momenta is None else memory.momenta[seat.worker]
                role = carried.get(seat.worker)
                tasks[seat.send(step, lent[step], role, momentum)] = seat
            else:
                inbox.refuse(seat.worker, reason)
        return tasks

    def _cleared(self, parameters: Tensor) -> Inbox:
        if self._inbox is None:
            code = self._job.code
            table = parameters.new_empty(code.num_workers, code.width(len(parameters)))
            self._inbox = Inbox(table)
        self._inbox.clear()
        return self._inbox

    def _await_start(self) -> None:
        ready = [seat.ready for seat in self._seats]
        self._ray.wait(ready, num_returns=len(ready), timeout=self._engine.start_timeout_s)
        reasons = [seat.obstacle() for seat in self._seats]
        if all(reason is not None and reason != "starting" for reason in reasons):
            raise RuntimeError(f"no worker of the engine Ray could start; the first {reasons[0]}")


class _Seat:
    """A worker's place, which outlives the processes that fill it."""

    def __init__(self, ray: ModuleType, engine: Ray, worker: int, job: Any) -> None:
        self._ray, self._engine, self.worker, self._job = ray, engine, worker, job
        self.pid: int | None = None  # known once the worker is ready
        self._task: Any = None  # the task that it is at, if any
        self._fresh = True  # whether its process has had no task yet
        self._sent = 0.0
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

    def send(self, step: int, parameters: Any, role: Role | None, momentum: Tensor | None) -> Any:
        """Gives the worker its task of a round; returns the reference to the reply.

        The momentum is that which the server knows: sent along to a process that has none yet.
        """
        self._sent = time.monotonic()
        known = None if momentum is None or not self._fresh else Parcel.pack(momentum)
        self._fresh = False
        self._task = self._actor.compute.remote(step, parameters, role, known)
        return self._task

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
                inbox.refuse(self.worker, "silent")
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
        self._actor = (
            self._ray.remote(_Actor)
            .options(
                num_cpus=engine.cpus_per_worker,
                num_gpus=engine.gpus_per_worker,
                scheduling_strategy="SPREAD",  # else Ray fills up one machine first
            )
            .remote()
        )
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
    """The process of a worker. It starts empty: what fails while it is prepared, can be told."""

    def prepare(
        self, worker: int, job: Job, chunk_size: int | None, threads: int, device: str
    ) -> int:
        """Makes the worker ready; returns the process id."""
        if device == "cuda" and not torch.cuda.is_available():
            device = "cpu"
        self._worker = Worker(worker, job, chunk_size, threads, device)
        return os.getpid()

    def compute(
        self, step: int, parameters: Parcel, role: Role | None, momentum: Parcel | None
    ) -> Reply:
        """See `Worker.compute`."""
        return self._worker.compute(step, parameters, role, momentum)


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
    held = 2 * dim + tables * job.code.num_workers * job.code.width(dim)
    tensors = job.dataset.tensors if isinstance(job.dataset, TensorDataset) else ()
    return STORE_BYTES + 2 * held * size + sum(tensor.nbytes for tensor in tensors)
