"""Federations of clients with different architectures: a model for each, and FedDF between them."""

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
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
from phalanx.federated.keeping import Keeping, ServerRounds
from phalanx.losses import Loss, cross_entropy
from phalanx.randomness import generator, seeded
from phalanx.training import Callback, Engine, Local, Round, Session, TrainingWorkers
from phalanx.training.arguments import check_kinds
from phalanx.training.callbacks import Callbacks
from phalanx.training.checkpoint import Checkpoint
from phalanx.training.checks import check_job
from phalanx.training.composition import composition, composition_of
from phalanx.training.conversation import converse
from phalanx.training.job import Job
from phalanx.training.rounds import Rounds
from phalanx.training.run_folder import RunFolder


@dataclass
class PrototypeRun:
    """Federated run with several architectures."""

    models: list[nn.Module]
    """One for each prototype, trained."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    """One dictionary a round, as in `metrics.jsonl`: `mean_accuracies` and `test_accuracies` by
    prototype, before and after the distillation, their mean `test_accuracy`, `ensemble_accuracy`,
    `teachers`, `clients` (numbered through all prototypes), `missing`, `suspects`, `loss`,
    `message_bytes`, `broadcast_bytes`, `seconds`."""


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
    out: Path | str | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    title: str | None = None,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
    on_round: Callable[[dict[str, Any]], None] | None = None,
    progress: bool | None = None,
) -> PrototypeRun:
    """FedDF for clients whose networks differ: all teach every prototype.

    A round averages the models of each prototype's clients, as FedAvg does, and then distils the
    ensemble of *all* clients' models into each of these means. A prototype of which nobody answers
    starts from its last model.

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
        out: a folder for metrics, checkpoints and weights; nothing is written if None.
        resume: go on with the run in `out`, with the arguments that it was begun with but the
            number of rounds: to the bit, also after a kill.
        checkpoint_every: rounds between checkpoints.
        title: what reports call the run.
        config: text that is kept in the folder as `config.yaml`.
        callbacks: what is called at the start, at rounds and the end; `run.model` holds the models
            in order.
        on_round: called after every round with its metrics.
        progress: whether progress is shown; see `phalanx.train`.

    Source: Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated
    Learning", NeurIPS 2020 (Algorithm 3).

    Raises:
        ValueError: if arguments do not fit, alone or together.

    Of the folder, errors are those of `phalanx.train`.
    """
    require_at_least(1, rounds=rounds, clients_per_round=clients_per_round)
    check_kinds({"loss": loss, "engine": engine, "test": test, "callbacks": callbacks})
    if not isinstance(algorithm, FedDF):
        raise ValueError(f"algorithm must be a FedDF, got {algorithm!r:.80}")
    if not model_fns or len(model_fns) != len(clients):
        raise ValueError(
            f"clients must be one list for each of {len(model_fns)} model_fns, got {len(clients)}"
        )
    jobs = [
        _job(make, own, algorithm, clients_per_round, rule, loss, seed, place)
        for place, (make, own) in enumerate(zip(model_fns, clients, strict=True))
    ]
    keeping = Keeping(out, resume, checkpoint_every, callbacks, on_round, progress)
    models = [job.model for job in jobs]

    def begin(told: Callbacks, folder: RunFolder | None) -> Rounds:
        kept = _Server(jobs, algorithm, test, distil, told, folder, title, config)
        if folder is not None:
            parts = {
                f"prototypes.{place}": composition(job, None) for place, job in enumerate(jobs)
            }
            told_of = {"algorithm": algorithm, "distil": distil}
            kept.composition = {**parts, **composition_of({}, {}, seed, **told_of)}
        return kept

    @contextmanager
    def sessions() -> Iterator[list[Session]]:
        with ExitStack() as stack:
            yield [stack.enter_context(engine.start(TrainingWorkers(job, {}))) for job in jobs]

    return PrototypeRun(models, keeping.run(begin, sessions, rounds).rounds)


class _Server(ServerRounds):
    """The server of a run: a model for each prototype, and the data that they are distilled on."""

    def __init__(
        self,
        jobs: Sequence[Job],
        algorithm: FedDF,
        test: Dataset[tuple[Tensor, ...]] | None,
        distil: bool,
        callbacks: Callbacks,
        folder: RunFolder | None,
        title: str | None,
        config: str | None,
    ) -> None:
        models = nn.ModuleList(job.model for job in jobs)
        names = () if test is None else ("test_accuracy",)
        super().__init__(
            models, jobs[0].seed, callbacks, folder, title or "FedDF, prototypes", config, names
        )
        self._jobs, self._algorithm, self._test, self._distil = jobs, algorithm, test, distil
        self._data = algorithm.step.init(jobs[0].model)

    def summary(self) -> Mapping[str, Any]:
        """Clients and prototypes."""
        return {
            "num_clients": sum(job.num_clients for job in self._jobs),
            "num_workers": sum(job.round.code.num_workers for job in self._jobs),
            "num_prototypes": len(self._jobs),
            "decoder": repr(self._jobs[0].round.code.method),
            "compute": repr(self._algorithm.compute),
            "step": repr(self._algorithm.distillation),
            "parts": [self._algorithm, self._jobs[0].round.code.method],
        }

    def _saved(self, step: int) -> Checkpoint:
        flat = [job.layout.read(job.model) for job in self._jobs]
        told = self.callbacks.state_dict()
        return Checkpoint(step, dict(self.composition), torch.empty(0), flat, callbacks=told)

    def _restore(self, saved: Checkpoint, changes: Collection[str]) -> None:
        for job, flat in zip(self._jobs, saved.server_step, strict=True):
            job.layout.write(job.model, flat)
        self.callbacks.load_state_dict(saved.callbacks)

    def round(self, session: Sequence[Session], step: int, *, evaluate: bool) -> None:
        """Means of all prototypes, then the distillation of each."""
        began, teachers = time.perf_counter(), list[nn.Module]()
        entry: dict[str, Any] = {
            **{"step": step, "clients": [], "missing": {}, "suspects": [], "outliers": []},
            **{"loss": [], "message_bytes": 0, "broadcast_bytes": 0},
        }
        first, means = 0, list[Tensor | None]()
        for job, own in zip(self._jobs, session, strict=True):
            mean, said = _averaged(job, own, step, entry, first)
            means.append(mean)
            teachers += said
            first += job.num_clients
        entry["loss"] = fmean(entry["loss"]) if entry["loss"] else None
        self.open()  # from here on the round is done
        for job, mean in zip(self._jobs, means, strict=True):
            if mean is not None:
                job.layout.write(job.model, mean)
        entry |= {"teachers": len(teachers), "mean_accuracies": self._accuracies()}
        distillation, inputs = self._algorithm.distillation, self._data.inputs
        if self._test is not None and teachers:
            together = distillation.ensemble_accuracy(teachers, self._test, inputs)
            entry["ensemble_accuracy"] = together
        logits = teacher_logits(teachers, inputs) if self._distil else torch.empty(0)
        if len(logits):
            targets = distillation.targets(logits)
            for place, job in enumerate(self._jobs):
                draws = generator(job.seed, "distillation", step, place)
                distillation.distil(job.model, inputs, targets, self._data.validation, draws)
        entry["test_accuracies"] = found = self._accuracies()
        if found and None not in found:
            entry["test_accuracy"] = fmean(found)
        self.tell({**entry, "seconds": time.perf_counter() - began}, evaluated=bool(found))

    def _accuracies(self) -> list[Any]:
        test = self._test
        if test is None:
            return []
        return [evaluate(job.model, job.loss, test, job.dataset).accuracy for job in self._jobs]


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


def _averaged(
    job: Job, session: Session, number: int, entry: dict[str, Any], first: int
) -> tuple[Tensor | None, list[nn.Module]]:
    """The mean of the clients' models, and these one by one.

    What there is to say of the round goes into `entry`, clients counted from `first` on.
    """
    before, teachers = job.layout.read(job.model), []
    clients = [first + one for one in job.clients(number)]
    entry["clients"] += clients
    try:
        found = converse(session, job, number, Broadcast(before))
    except TooManyByzantineError as error:
        entry["missing"] |= {str(client): str(error) for client in clients}
        return None, []  # of nobody there is a mean
    collected = found.collected
    for message in collected.messages[collected.arrived]:
        teacher = copy.deepcopy(job.model)
        job.layout.write(teacher, before - message)
        teachers.append(teacher)
    entry["message_bytes"] += collected.message_bytes
    entry["broadcast_bytes"] += found.broadcast_bytes
    entry["missing"] |= {str(clients[one]): why for one, why in collected.missing.items()}
    entry["suspects"] += [clients[one] for one in found.suspects]
    entry["loss"] += collected.losses[collected.arrived].tolist()
    doubted = found.decoded.outliers
    if doubted is not None:
        entry["outliers"] += [clients[one] for one in doubted.nonzero().flatten().tolist()]
    return before - found.decoded.gradient, teachers
