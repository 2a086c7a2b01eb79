"""Client of a federation on Flower: one task of a round, computed as the engines compute it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.computations import Broadcast
from phalanx.federated.flower.plan import FederationPlan
from phalanx.federated.flower.records import array_record, import_flower, number, tensors_of
from phalanx.ordering import Batches, Order
from phalanx.training.checks import check_job
from phalanx.training.engines.base import Site
from phalanx.training.job import Job
from phalanx.training.protocol_session import PhaseTask
from phalanx.training.worker import RoundTask, Sent, TrainingWorkers, Worker
from phalanx.training.worker_state import WorkerState

_KEPT, _KEPT_OF = "phalanx.kept", "phalanx.kept-of"
_BEFORE, _AFTER, _DATE = "phalanx.before", "phalanx.after", "phalanx.date"


@dataclass(frozen=True)
class OwnSamples(Order):
    """Order of a client that holds no samples but its own."""

    shared: ClassVar[bool] = False
    moves: ClassVar[bool] = True

    def permutation(
        self, num_samples: int, epoch: int, *names: int | str
    ) -> Int[Tensor, " samples"]:
        """As they stand."""
        return torch.arange(num_samples)

    def samples(self, batches: Batches, step: int, partition: int) -> Int[Tensor, " size"]:
        """All of them, whichever place the client has in the round."""
        return torch.arange(batches.num_samples)


def client_app(plan: FederationPlan) -> Any:
    """The `ClientApp` of a federation."""
    app = import_flower("flwr.clientapp").ClientApp()
    workers: dict[int, Worker] = {}  # of this process; not a cache of functools: Ray pickles it

    def worker_of(context: Any) -> tuple[int, Worker]:
        client = _identity(plan, context)
        if client not in workers:
            workers[client] = _worker(_job(plan, client))
        return client, workers[client]

    @app.query("describe")  # type: ignore[untyped-decorator]
    def describe(message: Any, context: Any) -> Any:
        """Who the client is, and how many samples it holds; an error if it cannot take part."""
        client, worker = worker_of(context)
        job = worker.updates.job
        check_job(job, {}, {})
        # A protocol adds the number up where nobody sees it.
        told = job.batches.num_samples if job.round.aggregation is None else 1
        return _reply(message, {"client": client, "num_samples": told})

    @app.train("round")  # type: ignore[untyped-decorator]
    def train(message: Any, context: Any) -> Any:
        """The client's message of a round; what it remembers stays in `context.state`."""
        return _round(worker_of(context)[1], message, context)

    @app.train("phase")  # type: ignore[untyped-decorator]
    def phase(message: Any, context: Any) -> Any:
        """The client's part in a phase of a protocol; what it keeps stays in `context.state`."""
        return _phase(worker_of(context)[1], message, context)

    return app


def _round(worker: Worker, message: Any, context: Any) -> Any:
    task, before = _task(message, context)
    step, (place,) = task.step, task.lent or {}
    reply = task.run(Worker(place, worker.updates))
    if reply.missing is not None:
        return _reply(message, {"step": step, "loss": float("nan")}, missing=reply.missing)
    sent: Sent = reply.value
    if not task.preparing and sent.state is not None:
        _remember(context, step, before, sent.state)
    return _reply(message, {"step": step, "loss": sent.loss}, {"message": sent.message})


def _task(message: Any, context: Any) -> tuple[RoundTask, WorkerState]:
    """What the client computes in a round, and what it remembers of those before."""
    told = message.content["task"]
    step, place = number(told, "step", int), number(told, "place", int)
    preparing = number(told, "preparing", bool)
    tensors = tensors_of(message.content["broadcast"])
    broadcast = Broadcast(tensors.pop("parameters"), tensors)
    before = _remembered(context, number(told, "taken", int))
    return RoundTask(step, broadcast, {}, lent={place: before}, preparing=preparing), before


def _phase(worker: Worker, message: Any, context: Any) -> Any:
    told = message.content["task"]
    step, place = number(told, "step", int), number(told, "place", int)
    preparing, attempt = number(told, "preparing", bool), number(told, "attempt", int)
    seated, first = Worker(place, worker.updates), None
    if "broadcast" in message.content:
        first, before = _task(message, context)
    else:
        seated.protocol = _kept(context, step, place, preparing=preparing)
    protocol = worker.updates.job.round.aggregation
    assert protocol is not None
    requests = {place: tensors_of(message.content["request"])}
    phase = number(told, "phase", str)
    reply = PhaseTask(step, protocol, attempt, phase, requests, 0, preparing, first).run(seated)
    metrics = {"step": step}
    if reply.missing is not None:
        return _reply(message, metrics, missing=reply.missing)
    if first is not None and not preparing and reply.value.state is not None:
        _remember(context, step, before, reply.value.state)
    assert seated.protocol is not None
    flower = import_flower()
    context.state[_KEPT] = array_record(seated.protocol[1])
    of = {"step": step, "place": place, "preparing": preparing}
    context.state[_KEPT_OF] = flower.ConfigRecord(of)
    return _reply(message, metrics, reply.value.message)


def _kept(
    context: Any, step: int, place: int, *, preparing: bool
) -> tuple[Sent, Mapping[str, Tensor]] | None:
    """What the client kept from the phase before, if that was of this round."""
    of = context.state.get(_KEPT_OF)
    told = {"step": step, "place": place, "preparing": preparing}
    if of is None or dict(of) != told:
        return None
    return Sent(torch.empty(0), torch.nan), tensors_of(context.state[_KEPT])


def _worker(job: Job) -> Worker:
    (worker,) = TrainingWorkers(job, {}).make({0: {}}, Site(chunk_size=1))
    made: Worker = worker
    return made


def _job(plan: FederationPlan, client: int) -> Job:
    """The job as it is on a client: its data, and no more of the server than it needs."""
    dataset = plan.data_fn(client)
    if not len(dataset):  # type: ignore[arg-type]
        raise ValueError(f"data_fn must give at least 1 sample, got none for client {client}")
    stages = plan.stages(OwnSamples())
    job = Job(plan.model(), plan.loss, dataset, stages, plan.num_sampled, plan.seed)
    # By what all know; and the client's own samples must fit that.
    return job.fitted().fitted([len(dataset)])  # type: ignore[arg-type]


def _identity(plan: FederationPlan, context: Any) -> int:
    client = context.node_config.get("partition-id")
    if type(client) is not int or not 0 <= client < plan.num_clients:
        raise ValueError(
            f"node-config must say partition-id, from 0 to {plan.num_clients - 1}, got {client!r}"
        )
    return client


def _reply(
    message: Any,
    metrics: Mapping[str, int | float],
    tensors: Mapping[str, Tensor] | None = None,
    missing: str | None = None,
) -> Any:
    flower = import_flower()
    content = flower.RecordDict({"metrics": flower.MetricRecord(dict(metrics))})
    if tensors is not None:
        content["arrays"] = array_record(tensors)
    if missing is not None:
        content["missing"] = flower.ConfigRecord({"reason": missing})
    return flower.Message(content, reply_to=message)


def _remembered(context: Any, taken: int) -> WorkerState:
    """What the client remembers, given the last round of which the server took its message.

    What it learned in a round whose message was lost it forgets, as if it had not taken part.
    """
    date = context.state.get(_DATE)
    which = _AFTER if date is not None and date["step"] == taken else _BEFORE
    record = context.state.get(which)
    if record is None:
        return {}
    state: dict[str, tuple[Tensor, ...]] = {}
    for name, tensor in tensors_of(record).items():
        stage = name.rpartition("/")[0]
        state[stage] = (*state.get(stage, ()), tensor)
    return state


def _remember(context: Any, step: int, before: WorkerState, after: WorkerState) -> None:
    flower = import_flower()
    for name, state in ((_BEFORE, before), (_AFTER, after)):
        parts = {f"{stage}/{i}": one for stage in state for i, one in enumerate(state[stage])}
        context.state[name] = array_record(parts)
    context.state[_DATE] = flower.ConfigRecord({"step": step})
