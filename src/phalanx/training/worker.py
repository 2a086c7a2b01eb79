"""Workers of a training run: compute, encode, transform and send."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.communication.serialization import PackedDataset
from phalanx.computations import Broadcast
from phalanx.training.aggregation_protocol import Message
from phalanx.training.attack_simulation import Role, behind
from phalanx.training.engines.base import Reply, Site, Task, WorkerFactory
from phalanx.training.job import Job
from phalanx.training.partition_updates import PartitionUpdates
from phalanx.training.worker_state import DatedState, WorkerState, copied

_Block = TypeVar("_Block")
_Made = tuple[Tensor, float, tuple[Tensor, ...]]


class RoundOver(Exception):
    """Cancellation of a round whose result nobody waits for any more."""


class Sent(NamedTuple):
    """Message of a worker in a round, with its losses and state.

    Attributes:
        message: its message.
        loss: the mean loss that it claims over its partitions.
        state: what it remembers, where that is nothing but the message, and costs nothing to send,
            or belongs to a client that may be elsewhere in the next round.
    """

    message: Tensor
    loss: float
    state: WorkerState | None = None


class Worker:
    """Worker: computes the partitions assigned to it and sends one message.

    What its stages remember it keeps from task to task: before and after the last round, so that a
    checkpoint may go back a round.

    Args:
        worker: id.
        updates: how it computes; workers of one process share it.
        state: what it remembers; copied.
    """

    def __init__(
        self, worker: int, updates: PartitionUpdates, state: WorkerState | None = None
    ) -> None:
        self.id, self.updates = worker, updates
        self.preparation = updates.preparation
        self.protocol: tuple[Sent, Message] | None = None  # between the phases of a protocol
        self._history: tuple[DatedState, ...] = (DatedState(0, copied(state or {})),)

    @property
    def state(self) -> WorkerState:
        """What it remembers now."""
        return self._history[-1].state

    def recall(self, step: int) -> WorkerState:
        """What it remembered before this round, or since the last one that it computed."""
        known = [one for one in self._history if one.step <= step]
        return known[-1].state if known else {}

    def updates_of(self, task: "RoundTask") -> PartitionUpdates:
        """How it computes a task of a round: the first one, or the only one."""
        if not task.preparing:
            return self.updates
        assert self.preparation is not None
        return self.preparation

    def become(self, task: "RoundTask") -> None:
        """Takes over what the client remembers whose turn it is, if clients change places."""
        if task.lent is not None:
            state = self.updates.placed(task.lent.get(self.id, {}))
            self._history = (DatedState(task.step, state),)

    def compute(
        self, task: "RoundTask", is_over: Callable[[], bool] = lambda: False
    ) -> _Made | None:
        """Its message before any transform, its loss, and what its computation remembers.

        None if nobody waits for it any more.
        """
        updates = self.updates_of(task)
        role, job = task.roles.get(self.id), updates.job
        self.become(task)
        step, broadcast = behind(role, task.step, task.broadcast, task.past)
        broadcast = updates.received(broadcast)
        attack = role.attack if role is not None else None
        code = job.round.code.at(step).informed(broadcast.extra)
        owned = code.assignment[self.id].nonzero().flatten().tolist()
        states = dict.fromkeys(owned, self.state.get("compute", ()))
        blocks = updates.blocks(step, owned, broadcast, states, attack)
        try:
            found = list(_unless(is_over, blocks))
        except RoundOver:
            return None
        if not found:
            empty = broadcast.parameters.new_empty(0, job.sent.dim)
            return code.encode(self.id, empty), torch.nan, ()
        message = code.encode(self.id, torch.cat([one.updates for one in found]))
        loss = torch.cat([one.losses for one in found]).double().cpu().mean().item()
        last = found[-1].states
        return message, loss, last[-1] if last else ()

    def send(self, task: "RoundTask", made: _Made) -> Reply:
        """What leaves the worker, and remembers what its stages do."""
        message, loss, computed = made
        chain = self.updates_of(task).job.chain
        role, before = task.roles.get(self.id), self.state
        states = dict(before)
        if computed:
            states["compute"] = computed
        own, sent, states = chain.update(message, states, task.step, self.id)
        if role is not None:  # its row may be forged in place: what is remembered stays true
            states = {
                name: tuple(one.clone() if one is message else one for one in parts)
                for name, parts in states.items()
            }
        if states:
            self._history = DatedState(task.step, before), DatedState(task.step + 1, states)
        if sent is None:
            return Reply(missing="not finite")
        if role is None or role.attack.omniscient:  # the server stages those, who read all others
            parts = [part for one in states.values() for part in one]
            light = bool(parts) and all(part is sent for part in parts)
            carried = light or (task.lent is not None and not task.preparing)
            return Reply(Sent(sent, loss, states if carried else None))
        if not role.attack.sends:
            return Reply(missing="silent", delay_s=role.attack.delay_s)
        forged = chain.forge(role.forge(own), task.step, self.id)
        return Reply(Sent(forged, loss), delay_s=role.attack.delay_s)


@dataclass(frozen=True)
class RoundTask(Task):
    """Task of one round of training."""

    broadcast: Broadcast
    """What all workers are sent."""
    roles: Mapping[int, Role]
    """The Byzantine workers, by id."""
    past: tuple[Broadcast, ...] = ()
    """Earlier broadcasts, oldest first, for workers that are behind."""
    lent: Mapping[int, WorkerState] | None = None
    """What the clients remember that workers compute for, by worker; None if they stay the same."""
    preparing: bool = False
    """Whether this is what workers compute first, see `Round.preparation`."""

    def run(self, worker: Worker, is_over: Callable[[], bool] = lambda: False) -> Reply:
        """One worker's part, by itself."""
        made = worker.compute(self, is_over)
        return Reply(missing="late") if made is None else worker.send(self, made)

    def run_together(self, workers: Sequence[Worker]) -> Iterator[tuple[int, Reply]]:
        """The same for workers of one process: every partition is computed once."""
        if not workers:
            return
        updates = workers[0].updates_of(self)
        for worker in workers:
            worker.become(self)
        code = updates.job.round.code.at(self.step).informed(self.broadcast.extra)
        losses: list[Tensor] = []
        states: dict[int, tuple[Tensor, ...]] = {}
        remembered = {one.id: one.state.get("compute", ()) for one in workers}

        def stream() -> Iterator[Tensor]:
            partitions = range(code.num_partitions)
            for block in updates.blocks(self.step, partitions, self.broadcast, remembered):
                first = sum(map(len, losses))
                states.update(enumerate(block.states, start=first))
                losses.append(block.losses)
                yield block.updates

        table = code.encode_all(stream())

        claimed = torch.cat(losses).double().cpu()
        for worker in workers:
            if self._deviates(worker.id):
                made = worker.compute(self)
                assert made is not None
            else:
                own = code.assignment[worker.id]
                made = table[worker.id], claimed[own].mean().item(), states.get(worker.id, ())
            yield worker.id, worker.send(self, made)

    def load(self, worker: Worker) -> int:
        """Partitions that the worker computes."""
        return int(worker.updates.job.round.code.at(self.step).assignment[worker.id].sum())

    def _deviates(self, worker: int) -> bool:
        """Whether a Byzantine worker computes anything else than it would if it were honest."""
        role = self.roles.get(worker)
        if role is None:
            return False
        attack, behind_by = role.attack, min(role.attack.rounds_behind, len(self.past))
        return attack.relabels or attack.computation is not None or behind_by > 0


@dataclass(frozen=True)
class ReadState(Task):
    """Task that reads a worker's state before a round, for a checkpoint, while it computes."""

    concurrent: ClassVar[bool] = True

    def run(self, worker: Worker, is_over: Callable[[], bool] = lambda: False) -> Reply:
        """Its state."""
        return Reply(worker.recall(self.step))


@dataclass(frozen=True)
class TrainingWorkers(WorkerFactory):
    """Factory of the workers of a training run."""

    job: Job
    """What they take part in."""
    states: dict[int, WorkerState]
    """What each is known to remember, by id: a worker that is started anew goes on with it."""

    def own(self, worker: int) -> Any:
        """What the worker remembers."""
        return dict(self.states.get(worker, {}))

    def make(self, owned: Mapping[int, Any], site: Site) -> list[Any]:
        """The workers of these ids, which share one model."""
        job = self.job
        if isinstance(job.dataset, PackedDataset):
            job = replace(job, dataset=job.dataset.unpack())
        updates = PartitionUpdates(job, site.chunk_size, site.device)
        if job.round.preparation is not None:
            updates.preparation = PartitionUpdates(job.preparing, site.chunk_size, site.device)
        on = site.device or next(job.model.parameters()).device
        return [
            Worker(one, updates, {k: tuple(x.to(on) for x in v) for k, v in state.items()})
            for one, state in owned.items()
        ]

    def heard(self, worker: int, value: object) -> None:
        """Keeps what a worker says that it remembers, should it have to be started anew."""
        if isinstance(value, Sent) and value.state is not None:
            self.states[worker] = copied(value.state)

    def packed(self) -> "TrainingWorkers":
        """As it travels: without the attack, on the CPU, tensors ready to be shared."""
        job = replace(self.job.for_workers(), model=copy.deepcopy(self.job.model).cpu())
        if type(job.dataset) is TensorDataset:
            job = replace(job, dataset=PackedDataset(job.dataset))
        return TrainingWorkers(job, {})

    @property
    def num_workers(self) -> int:
        """Workers of the run."""
        return self.job.round.code.num_workers

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.job.seed

    @property
    def held_bytes(self) -> int:
        """The data, and all that two rounds send: late messages linger."""
        width, dim = self.job.chain.layout.dim, self.job.layout.dim
        tables = 1 + 2 * len(self.job.round.transforms)
        held = (2 * dim + tables * self.num_workers * width) * self.job.layout.dtype.itemsize
        tensors = self.job.dataset.tensors if isinstance(self.job.dataset, TensorDataset) else ()
        return 2 * held + sum(tensor.nbytes for tensor in tensors)


def _unless(is_over: Callable[[], bool], blocks: Iterator[_Block]) -> Iterator[_Block]:
    """The blocks, computed one by one, until somebody says that it is over."""
    while not is_over():
        try:
            yield next(blocks)
        except StopIteration:
            return
    raise RoundOver
