"""Flower engine: workers are clients behind nodes of a federation, this process is the server."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from phalanx.errors import TooManyByzantineError, WireError, WorkerError, require
from phalanx.federated.flower.nodes import NodeRegistry, lost, printable, pulled, reason_of
from phalanx.federated.flower.records import array_record, import_flower, number, tensors_of
from phalanx.training.engines.base import (
    Collector,
    Engine,
    Replies,
    Session,
    Task,
    Waiting,
    WorkerFactory,
)
from phalanx.training.job import Job
from phalanx.training.protocol_session import Phased, PhaseTask
from phalanx.training.worker import RoundTask, Sent, TrainingWorkers

_REFUSED = ("refused", "restarted")  # what it may say in a phase of a protocol
_MISSING = ("not finite",)  # what an honest client may say instead of sending a message


@dataclass(frozen=True, eq=False)
class FlowerEngine(Engine):
    """Engine over a grid of Flower; `as_flower` makes it, on the server.

    What clients remember stays with them. A round is over when all clients that were asked have
    answered, or after `round_timeout_s`. With fewer usable messages than `quorum` those that are
    missing are asked again, `attempts` times in all; then the run stops.
    """

    grid: Any
    """Of Flower."""
    nodes: NodeRegistry
    """Which node is which client."""
    quorum: int
    """Usable messages that a round needs."""
    round_timeout_s: float
    """Seconds that an attempt at a round takes at most."""
    start_timeout_s: float
    """Seconds that the first round waits for all clients, and then goes on with a quorum."""
    attempts: int
    """How often clients are asked in a round."""
    poll_s: float
    """Seconds between looks for replies."""

    def start(self, factory: WorkerFactory) -> "FlowerSession":
        """Waits for the nodes.

        Raises:
            WorkerError: if there is no quorum in time.
        """
        assert isinstance(factory, TrainingWorkers)
        session = FlowerSession(self, factory.job)
        session.await_nodes()
        return session


class FlowerSession(Session):
    """Session of clients behind a grid."""

    def __init__(self, engine: FlowerEngine, job: Job) -> None:
        self._engine, self._job = engine, job
        self._taken: dict[int, int] = {}  # the last round of which a client's message was taken

    def await_nodes(self) -> None:
        """Waits until all clients are there, or until the time is over and a quorum is."""
        engine, nodes = self._engine, self._engine.nodes
        end = time.monotonic() + engine.start_timeout_s
        while True:
            nodes.refresh()
            number_there = len(nodes.connected())
            settled = number_there + len(nodes.refused)
            if number_there == self._job.num_clients or time.monotonic() > end:
                break
            if settled >= self._job.num_clients and number_there >= engine.quorum:
                break
            time.sleep(engine.poll_s)
        if number_there < engine.quorum:
            told = dict(sorted(nodes.refused.items()))
            raise WorkerError(
                f"quorum must be connected within {engine.start_timeout_s} s: {engine.quorum} "
                f"clients, got {number_there}" + "".join(f"; node {n}: {told[n]}" for n in told),
                reasons=told,
            )

    def call(
        self,
        task: Task,
        workers: Collection[int],
        waiting: Waiting = Waiting(),  # noqa: B008 - immutable
        collector: Collector | None = None,
    ) -> Replies:
        """Sends the task to the clients of a round, and takes their messages in.

        Raises:
            TooManyByzantineError: if there is no quorum after the last attempt.
        """
        assert isinstance(task, RoundTask | PhaseTask)
        quorum = task.needed if isinstance(task, PhaseTask) else self._engine.quorum
        began, collector, nodes = time.monotonic(), collector or Collector(), self._engine.nodes
        known = set(nodes.known)  # who says later how many samples it holds had no weight yet
        missing: dict[int, str] = {}
        open_ = list(workers)
        for _ in range(self._engine.attempts):
            missing = self._attempt(task, quorum, open_, known, collector)
            open_ = [one for one in workers if not collector.usable(one)]
            if len(workers) - len(open_) >= quorum:
                break
        else:
            clients = self._job.clients(task.step)
            raise TooManyByzantineError(
                f"quorum must answer: {quorum} of the {len(workers)} clients of round "
                f"{task.step}, got {len(workers) - len(open_)} in {self._engine.attempts} attempts "
                f"(missing: { {clients[one]: missing.get(one, 'unusable') for one in open_} })",
                workers=open_,
                bound=len(workers) - quorum,
            )
        nodes.refresh()  # so that who is new has a weight in the next round
        if not task.preparing and (isinstance(task, RoundTask) or task.last):
            clients = self._job.clients(task.step)
            self._taken |= {clients[i]: task.step for i in workers if collector.usable(i)}
        return Replies(missing, time.monotonic() - began, None, waiting.memory)

    def restart(self, workers: Collection[int]) -> None:
        """Nothing: nodes are started where they are."""

    def _attempt(
        self,
        task: RoundTask | PhaseTask,
        quorum: int,
        workers: Collection[int],
        known: set[int],
        collector: Collector,
    ) -> dict[int, str]:
        """Asks clients once each; why nothing came from some of them.

        Where there is no quorum, those that are not connected are waited for.
        """
        engine, until = self._engine, time.monotonic() + self._engine.round_timeout_s
        pending: dict[int, str] = {}
        missing: dict[int, str] = {}
        absent = list(workers)
        while True:
            pending |= self._hand_out(task, absent, known)
            absent = [one for one in absent if one not in pending]
            for place, sent in list(pending.items()):
                for reply in pulled(engine.grid, sent):
                    del pending[place]
                    if reason := self._take(task, place, reply, collector):
                        missing[place] = reason
            settled = not absent or self._num_usable(task, collector) >= quorum
            left_s = until - time.monotonic()
            if (settled and not pending) or left_s <= 0:
                return {
                    **missing,
                    **dict.fromkeys(absent, "dead"),
                    **dict.fromkeys(pending, "late"),
                }
            time.sleep(min(engine.poll_s, left_s))

    def _hand_out(
        self, task: RoundTask | PhaseTask, workers: Collection[int], known: set[int]
    ) -> dict[int, str]:
        """Sends the task to those that are connected; ids of messages, by place in the round."""
        if not workers:
            return {}
        flower, engine = import_flower(), self._engine
        engine.nodes.refresh()
        clients, nodes = self._job.clients(task.step), engine.nodes.connected()
        there = [one for one in workers if clients[one] in nodes and clients[one] in known]
        first = task if isinstance(task, RoundTask) else task.first
        shared = {}
        if there and isinstance(first, RoundTask):
            tensors = {**first.broadcast.extra, "parameters": first.broadcast.parameters}
            shared["broadcast"] = array_record(tensors)
        messages = []
        for place in there:
            told: dict[str, int | str] = {
                "step": task.step,
                "place": place,
                "preparing": task.preparing,
                "taken": self._taken.get(clients[place], -1),
            }
            content = {**shared}
            if isinstance(task, PhaseTask):
                told |= {"phase": task.phase, "attempt": task.attempt}
                content["request"] = array_record(task.requests[place])
            content["task"] = flower.ConfigRecord(told)
            messages.append(
                flower.Message(
                    flower.RecordDict(content),
                    nodes[clients[place]],
                    "train.phase" if isinstance(task, PhaseTask) else "train.round",
                    ttl=engine.round_timeout_s,
                    group_id=str(task.step),
                )
            )
        ids = engine.grid.push_messages(messages) if messages else []
        return {place: sent for place, sent in zip(there, ids, strict=False) if sent}

    def _num_usable(self, task: RoundTask | PhaseTask, collector: Collector) -> int:
        places = range(len(self._job.clients(task.step)))
        return sum(collector.usable(place) for place in places)

    def _take(
        self, task: RoundTask | PhaseTask, place: int, reply: Any, collector: Collector
    ) -> str | None:
        """Takes a reply in; or says why nothing came, if that is not the client's fault."""
        if isinstance(reply, Exception):
            collector.refuse(place, "malformed")
            return None
        if reply.has_error():
            return "dead" if lost(reply) else f"failed: {reason_of(reply)}"
        try:
            content: Mapping[str, Any] = reply.content
            told = content.get("metrics")
            require(number(told, "step", int) == task.step, "be of this round")
            phased = isinstance(task, PhaseTask)
            loss = torch.nan if phased else number(told, "loss", float)
            if (config := content.get("missing")) is not None:
                reason = number(config, "reason", str)
                if phased and reason.startswith(_REFUSED):
                    return printable(reason)
                require(reason in _MISSING, "say why there is none")
                collector.refuse(place, reason)
                return None
            tensors = tensors_of(content.get("arrays"))
            if phased:
                collector.take(place, Phased(tensors))
                return None
            require(set(tensors) == {"message"}, "be one array")
        except WireError:
            collector.refuse(place, "malformed")
            return None
        message = tensors["message"]
        if message.is_floating_point() and not message.isfinite().all():
            collector.refuse(place, "not finite")  # the mean would stop the run
            return None
        collector.take(place, Sent(message, loss))
        return None
