"""Federated runs: `federate` trains one model on clients some of which take part in each round."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.attacks import Attack, Schedule
from phalanx.checks import require_at_least
from phalanx.coding import Uncoded
from phalanx.evaluation import Metric
from phalanx.federated.base import FederatedAlgorithm
from phalanx.federated.client_evaluator import ClientEvaluator
from phalanx.federated.client_privacy import ClientPrivacy, protected
from phalanx.federated.clients import joined
from phalanx.federated.fed_avg import FedAvg
from phalanx.federated.partition_record import PartitionRecord
from phalanx.files import owned
from phalanx.losses import Loss, cross_entropy
from phalanx.randomness import seeded
from phalanx.training import (
    AggregationProtocol,
    Callback,
    Engine,
    Local,
    Ray,
    Reputation,
    Round,
    Run,
)
from phalanx.training.arguments import check_kinds, place
from phalanx.training.callbacks import Callbacks, OnRound
from phalanx.training.checks import check_job
from phalanx.training.composition import composition
from phalanx.training.interruption import terminable
from phalanx.training.job import Job
from phalanx.training.loop import Loop
from phalanx.training.progress import ProgressBar, shown
from phalanx.training.run import check_resume, run_rounds
from phalanx.training.run_folder import RunFolder
from phalanx.transforms import MessageTransform


def federate(
    model_fn: Callable[[], nn.Module],
    clients: Sequence[Dataset[tuple[Tensor, ...]]],
    algorithm: FederatedAlgorithm = FedAvg(),  # noqa: B008 - frozen
    *,
    rounds: int = 100,
    clients_per_round: int | None = None,
    rule: Aggregator = Mean(),  # noqa: B008 - frozen
    aggregation: AggregationProtocol | None = None,
    attack: Attack | None = None,
    byzantine: Schedule | None = None,
    transforms: Sequence[MessageTransform] = (),
    privacy: ClientPrivacy | None = None,
    loss: Loss = cross_entropy,
    engine: Engine | Literal["local", "ray"] = Local(),  # noqa: B008 - frozen
    seed: int = 0,
    device: torch.device | str | None = None,
    test: Dataset[tuple[Tensor, ...]] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    changes: Sequence[str] = (),
    evaluate_every: int = 10,
    checkpoint_every: int = 20,
    title: str | None = None,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
    on_round: Callable[[dict[str, Any]], None] | None = None,
    progress: bool | None = None,
) -> Run:
    """Trains one model on the data of many clients, of whom some take part in each round.

    An algorithm is the stages that it gives to a round, so that everything else is that of
    `phalanx.train`: engines, rules, attacks, compressors, run folders, and runs that resume to the
    bit. Only the clients of a round are computed, and all that is kept of the others is what their
    stages remember: nothing with FedAvg and Mime, one vector with SCAFFOLD.

    Args:
        model_fn: makes the model, from weights that follow from `seed`; or a model, which is then
            trained in place.
        clients: the data set of each, pairs of input and target; see `deal`.
        algorithm: what clients compute, and what the server does with it.
        rounds: in all, those before an interruption included.
        clients_per_round: how many are drawn for each round; all of them by default.
        rule: how the server aggregates what the clients of a round send.
        aggregation: a protocol by which it learns their mean and no update, such as `SecureSum`; by
            default it is sent all updates.
        attack: what Byzantine clients do, in a simulated attack; none by default.
        byzantine: which clients are Byzantine when; by default as many of those that take part as
            the rule survives, drawn anew every round.
        transforms: what clients do to their messages before they send them, in order: noise, a
            compressor last. What these remember goes with the client.
        privacy: budget, norm and noise of client-level differential privacy; none by default.
        loss: mean loss of a batch from the model's output and the targets.
        engine: where clients are computed, `clients_per_round` of them at a time; or its name. Who
            is late is its business: give `Local(policy=..., delays=...)`.
        seed: of everything random: weights, who takes part, minibatches, attacks.
        device: where the server keeps the model; where it is by default.
        test: data to evaluate on.
        metrics: what is measured beside loss and accuracy, by name: functions of all outputs and
            targets that return a number; see `phalanx.train`.
        out: a folder for metrics, checkpoints and weights; nothing is written if None.
        resume: go on with the run in `out`, with the arguments that it was begun with.
        changes: with `resume`, what is meant to differ from the run so far: `lr`, `attack`,
            `byzantine`.
        evaluate_every: rounds between evaluations: on `test`, and on the clients' own samples.
        checkpoint_every: rounds between checkpoints.
        title: what reports call the run.
        config: text that is kept in the folder as `config.yaml`.
        callbacks: what is called at the start, at rounds, evaluations and the end.
        on_round: called after every round with its metrics.
        progress: whether progress is shown, a bar in terminals and notebooks, lines in logs; by
            default unless the environment variable PHALANX_PROGRESS is 0.

    Returns:
        The run; its rounds say who took part (`clients`), who was suspected, bytes up
        (`message_bytes`) and down (`broadcast_bytes`), and, where it was evaluated, the accuracy of
        the model on the samples of the median client and of the worst tenth.

    Raises:
        ValueError: if arguments do not fit, alone or together; see docs/federated.md for what does
            not.
        TooManyByzantineError: if more clients of a round fail than the rule survives.

    The other errors are those of `phalanx.train`.
    """
    dataset, order = joined(clients)
    number = len(clients)
    sampled = number if clients_per_round is None else clients_per_round
    require_at_least(1, clients_per_round=sampled, rounds=rounds)
    if sampled > number:
        raise ValueError(f"clients_per_round must be at most the {number} clients, got {sampled}")
    if not isinstance(model_fn, nn.Module):
        with seeded(seed, "weights"):
            model = model_fn()
    else:
        model = model_fn
    engine = {"local": Local(), "ray": Ray()}[engine] if isinstance(engine, str) else engine
    given = {"algorithm": algorithm, "rule": rule, "aggregation": aggregation}
    kinds = {"algorithm": FederatedAlgorithm, "rule": Aggregator}
    if aggregation is not None:
        kinds["aggregation"] = AggregationProtocol
    for name, kind in kinds.items():
        if not isinstance(given[name], kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {given[name]!r:.80}")
    stages = Round(
        Uncoded(sampled, rule),
        order,
        algorithm.compute,
        transforms,
        attack,
        byzantine,
        algorithm.step,
        algorithm.preparation,
        weighted_by_samples(algorithm, rule, sampled, aggregation),
        aggregation,
    )
    if privacy is not None:
        stages = privacy.stages(stages)
    checked = {"model": model, "compute": stages.compute, "step": stages.step}
    checked |= {"attack": attack, "byzantine": byzantine, "engine": engine, "loss": loss}
    listed = {"transforms": list(transforms), "callbacks": list(callbacks)}
    check_kinds({**checked, **listed, "metrics": metrics, "test": test})
    place(model, device)
    share = max(1, round(len(order.indices) / number))
    job = Job(model, loss, dataset, stages, sampled * share, seed)
    sets = {} if test is None else {"test": test}
    counts = {"evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    check_job(job, sets, counts)
    job = job.fitted(order.sizes.tolist())
    check_resume(out, resume, changes)
    told = [*callbacks, *([OnRound(on_round)] if on_round is not None else [])]
    told.append(PartitionRecord(dataset, order))
    private, ledgers = protected(privacy, job, rounds, resume=resume)
    told += ledgers
    with terminable(), owned(Path(out)) if out is not None else nullcontext():
        loop = Loop(
            private,
            Reputation(None, 0, None, rounds),
            ClientEvaluator(sets, metrics or {}, order),
            Callbacks([*([ProgressBar()] if shown(progress) else []), *told]),
            RunFolder(Path(out), resume=resume) if out is not None else None,
            title or type(algorithm).__name__,
            config,
        )
        loop.algorithm = algorithm
        if out is not None:
            loop.policy = repr(getattr(engine, "policy", None))
            loop.composition = composition(
                job, loop.step_state, **({} if privacy is None else {"privacy": privacy})
            )
        first = loop.restore(changes) if resume else 0
        if first > rounds:
            raise ValueError(
                f"rounds must be at least the {first} rounds that are done, got {rounds}"
            )
        return run_rounds(loop, engine, range(first, rounds), evaluate_every, checkpoint_every)


def weighted_by_samples(
    algorithm: FederatedAlgorithm,
    rule: Aggregator,
    clients_per_round: int,
    aggregation: AggregationProtocol | None = None,
) -> bool:
    """Whether clients count by their number of samples.

    Raises:
        ValueError: if the algorithm asks for it, and weights have no meaning for the rule, or for
            the protocol.
    """
    if aggregation is not None and aggregation.counts_alike:
        if algorithm.weighted:
            raise ValueError(f"weighted must be False under {aggregation}: clients count alike")
        return False
    if algorithm.weighted is None:
        return algorithm.counts_samples and isinstance(rule, Mean)
    if algorithm.weighted:
        weights = torch.arange(1, clients_per_round + 1)
        try:
            rule(torch.zeros(clients_per_round, 1), weights)
        except (ValueError, TypeError) as error:  # the latter of one that knows of none
            raise ValueError(
                f"weighted needs a rule that weighs clients, got {rule}: {error}"
            ) from error
    return algorithm.weighted
