"""Federations of clients with different architectures: a model for each, and FedDF between them."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.checks import require_at_least
from phalanx.coding import Uncoded
from phalanx.computations import Broadcast
from phalanx.errors import TooManyByzantineError
from phalanx.evaluation import evaluate
from phalanx.federated.clients import joined
from phalanx.federated.distillation import teacher_logits
from phalanx.federated.fed_df import FedDF
from phalanx.losses import Loss, cross_entropy
from phalanx.randomness import generator, seeded
from phalanx.training import Engine, Local, Round, Session, TrainingWorkers
from phalanx.training.checks import check_job
from phalanx.training.conversation import converse
from phalanx.training.job import Job


@dataclass
class PrototypeRun:
    """Federated run with several architectures."""

    models: list[nn.Module]
    """One for each prototype, trained."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    """One dictionary a round: `mean_accuracy` and `test_accuracy` by prototype, before and after
    the distillation, `teachers`, `message_bytes`, `broadcast_bytes`."""


def federate_prototypes(
    model_fns: Sequence[Callable[[], nn.Module]],
    clients: Sequence[Sequence[Dataset[tuple[Tensor, ...]]]],
    algorithm: FedDF,
    *,
    rounds: int = 10,
    clients_per_round: int | None = None,
    rule: Aggregator = Mean(),  # noqa: B008 - frozen
    loss: Loss = cross_entropy,
    engine: Engine = Local(),  # noqa: B008 - frozen
    seed: int = 0,
    test: Dataset[tuple[Tensor, ...]] | None = None,
    distil: bool = True,
) -> PrototypeRun:
    """FedDF for clients whose networks differ: all teach every prototype.

    A round averages the models of each prototype's clients, as FedAvg does, and then distils the
    ensemble of *all* clients' models into each of these means. A prototype of which nobody answers
    starts from its last model. Nothing is written, and an interrupted run begins anew.

    Args:
        model_fns: makes the model of each prototype; all score the same classes.
        clients: the data sets of the clients of each prototype.
        algorithm: local steps, distillation and data, see `FedDF`.
        rounds: how many.
        clients_per_round: how many of each prototype's clients take part; all by default.
        rule: how models of one prototype are aggregated.
        loss: mean loss of a batch.
        engine: where clients are computed.
        seed: of everything random.
        test: data to evaluate on.
        distil: whether to distil; without it, each prototype is a FedAvg of its own.

    Source: Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated
    Learning", NeurIPS 2020 (Algorithm 3).

    Raises:
        ValueError: if arguments do not fit, alone or together.
    """
    require_at_least(1, rounds=rounds, clients_per_round=clients_per_round)
    if not model_fns or len(model_fns) != len(clients):
        raise ValueError(
            f"clients must be one list for each of {len(model_fns)} model_fns, got {len(clients)}"
        )
    jobs = [
        _job(make, own, algorithm, clients_per_round, rule, loss, seed, place)
        for place, (make, own) in enumerate(zip(model_fns, clients, strict=True))
    ]
    run = PrototypeRun([job.model for job in jobs])
    state = algorithm.step.init(jobs[0].model)
    with ExitStack() as stack:
        sessions = [stack.enter_context(engine.start(TrainingWorkers(job, {}))) for job in jobs]
        for number in range(rounds):
            teachers: list[nn.Module] = []
            entry: dict[str, Any] = {"step": number, "message_bytes": 0, "broadcast_bytes": 0}
            for job, session in zip(jobs, sessions, strict=True):
                teachers += _averaged(job, session, number, entry)
            entry |= {"teachers": len(teachers), "mean_accuracy": _accuracies(jobs, test)}
            logits = teacher_logits(teachers, state.inputs)
            if distil and len(logits):
                targets = algorithm.distillation.targets(logits)
                for place, job in enumerate(jobs):
                    draws = generator(seed, "distillation", number, place)
                    algorithm.distillation.distil(
                        job.model, state.inputs, targets, state.validation, draws
                    )
            run.rounds.append({**entry, "test_accuracy": _accuracies(jobs, test)})
    return run


def _job(
    make: Callable[[], nn.Module],
    clients: Sequence[Dataset[tuple[Tensor, ...]]],
    algorithm: FedDF,
    clients_per_round: int | None,
    rule: Aggregator,
    loss: Loss,
    seed: int,
    place: int,
) -> Job:
    """The part of a round that the clients of one prototype take."""
    dataset, order = joined(clients)
    sampled = len(clients) if clients_per_round is None else clients_per_round
    if sampled > len(clients):
        raise ValueError(
            f"clients_per_round must be at most the {len(clients)} clients of prototype {place}, "
            f"got {sampled}"
        )
    with seeded(seed, "weights", place):
        model = make()
    weighted = algorithm.weighted if algorithm.weighted is not None else isinstance(rule, Mean)
    stages = Round(Uncoded(sampled, rule), order, algorithm.compute, weighted=weighted)
    share = max(1, round(len(order.indices) / len(clients)))
    job = Job(model, loss, dataset, stages, sampled * share, seed)
    check_job(job, {}, {})
    return job


def _averaged(job: Job, session: Session, number: int, entry: dict[str, Any]) -> list[nn.Module]:
    """Puts the mean of the clients' models into a prototype's; returns these one by one."""
    before, teachers = job.layout.read(job.model), []
    try:
        found = converse(session, job, number, Broadcast(before))
    except TooManyByzantineError:
        return []  # of nobody there is a mean
    for message in found.collected.messages[found.collected.arrived]:
        teacher = copy.deepcopy(job.model)
        job.layout.write(teacher, before - message)
        teachers.append(teacher)
    job.layout.write(job.model, before - found.decoded.gradient)
    entry["message_bytes"] += found.collected.message_bytes
    entry["broadcast_bytes"] += found.broadcast_bytes
    return teachers


def _accuracies(
    jobs: Sequence[Job], test: Dataset[tuple[Tensor, ...]] | None
) -> list[float | None]:
    if test is None:
        return []
    return [evaluate(job.model, job.loss, test, job.dataset).accuracy for job in jobs]
