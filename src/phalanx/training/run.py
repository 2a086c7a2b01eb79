"""Training runs: `train` runs rounds, records them, and resumes them bit for bit."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import Dataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.attacks import Attack, Schedule
from phalanx.batch_size import DiversityMonitor
from phalanx.coding import Code, Uncoded
from phalanx.computations import Computation, Gradient, MixedPrecision
from phalanx.evaluation import Metric
from phalanx.files import owned
from phalanx.losses import Loss, cross_entropy
from phalanx.ordering import Order, RandomReshuffling
from phalanx.training.arguments import check_kinds, check_monitor, place, rounds_in, split_off
from phalanx.training.callbacks import Callback, Callbacks, OnRound
from phalanx.training.checks import check_job
from phalanx.training.composition import BY_INTENT, composition
from phalanx.training.differential_privacy import DifferentialPrivacy
from phalanx.training.engines.base import Engine
from phalanx.training.engines.local import Local
from phalanx.training.evaluator import Evaluator
from phalanx.training.interruption import terminable
from phalanx.training.job import Job
from phalanx.training.loop import Loop
from phalanx.training.progress import ProgressBar, shown
from phalanx.training.reputation import OutlierTest, Reputation
from phalanx.training.round import Round
from phalanx.training.rounds import go_on
from phalanx.training.run_folder import RunFolder
from phalanx.training.run_record import Run
from phalanx.training.server_step import (
    ClippedStep,
    Interval,
    MakeOptimizer,
    MakeScheduler,
    OptimizerStep,
    ServerStep,
)
from phalanx.training.worker import TrainingWorkers
from phalanx.transforms import MessageTransform

_SAMPLES = 16  # per partition, unless the batch size is given


def train(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, ...]],
    code: Code | None = None,
    *,
    rule: Aggregator | None = None,
    num_workers: int = 15,
    order: Order = RandomReshuffling(),  # noqa: B008 - frozen
    compute: Computation = Gradient(),  # noqa: B008 - frozen
    transforms: Sequence[MessageTransform] = (),
    attack: Attack | None = None,
    byzantine: Schedule | None = None,
    step: ServerStep | None = None,
    optimizer: MakeOptimizer = lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
    lr_scheduler: MakeScheduler | None = None,
    lr_scheduler_interval: Interval = "round",
    lr_scheduler_monitor: str = "loss",
    max_grad_norm: float | None = None,
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
    privacy: DifferentialPrivacy | None = None,
    loss: Loss = cross_entropy,
    engine: Engine = Local(),  # noqa: B008 - frozen
    steps: int | None = None,
    epochs: int | float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    exclude_after: int | None = None,
    exclude_outliers: OutlierTest | None = None,
    measure_diversity: bool = False,
    test: Dataset[tuple[Tensor, ...]] | None = None,
    validation: Dataset[tuple[Tensor, ...]] | float | None = None,
    metrics: Mapping[str, Metric] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    changes: Sequence[str] = (),
    evaluate_every: int = 20,
    checkpoint_every: int = 20,
    title: str | None = None,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
    on_round: Callable[[dict[str, Any]], None] | None = None,
    progress: bool | None = None,
) -> Run:
    """Trains a model on workers some of which may be Byzantine, slow or dead.

    The stages of the round (`Round`) are arguments: a code or a rule, an order, a computation,
    transforms of messages, a simulated attack, a server step. The same arguments give the same
    weights, on any engine, interrupted or not: order, batches, attacks and random layers follow
    from `seed` and the number of the round.

    Args:
        model: any module; its parameters are trained in place.
        dataset: pairs of input and target.
        code: a gradient code; it decodes by itself, and says how many workers there are.
        rule: a robust rule instead of a code; each of `num_workers` workers then computes one
            partition. The plain mean if neither is given.
        num_workers: workers under a rule.
        order: which samples make which partition of which round; `PerClient` gives every worker
            data of its own, under a rule only.
        compute: what a worker computes from the parameters and its samples.
        transforms: what workers do to their messages before they send them, in order: momentum,
            noise, a compressor last. Codes that compare replicas, or look for Byzantine workers in
            what does not fit, refuse those that would make honest workers differ.
        attack: what Byzantine workers do, in a simulated attack; none by default.
        byzantine: which workers are Byzantine when; by default as many as the code or rule
            survives, drawn anew every round.
        step: what becomes of the decoded update; a step of `optimizer` by default.
        optimizer: makes the optimizer from the parameters: any of torch, by name.
        lr_scheduler: makes a learning-rate scheduler of torch from the optimizer; a constant
            learning rate by default. Its state is part of the checkpoint.
        lr_scheduler_interval: whether it steps after every `round`, or at the end of every `epoch`.
        lr_scheduler_monitor: the metric that `ReduceLROnPlateau` is given, such as `loss` or
            `validation_loss`; rounds that do not measure it are passed over.
        max_grad_norm: the decoded update is cut down to this Euclidean norm before the step, see
            `ClippedStep`; not clipped by default.
        mixed_precision: whether workers compute in 16 bits where that is safe: `bf16` or `fp16`,
            see `MixedPrecision`.
        privacy: budget and noise of differentially private training; none by default. It needs
            `compute=ClippedGradient(...)` or another one of bounded influence, and
            `order=PoissonSampling()`.
        loss: mean loss of a batch from the model's output and the targets; by default torch's
            cross-entropy, which outputs `(batch, length, classes)` may come to, too.
        engine: where the workers run; in this process by default.
        steps: rounds in all, those before an interruption included; 200 if neither steps nor
            epochs are given.
        epochs: passes over the data instead of steps; a part of one counts, to whole rounds.
        batch_size: samples per round over all partitions; a multiple of their number. 16 per
            partition by default.
        seed: of everything random.
        device: where the server keeps the model, which is moved there; where it is by default.
        exclude_after: excludes a worker for good once it was named in so many rounds more than its
            messages were held good, see `Reputation`; no more workers than the code or rule
            survives. Named is who is Byzantine for certain: by proof of a code, or for a message
            that is malformed or not finite. By default nobody is excluded.
        exclude_outliers: also excludes workers for what is no proof, being left out by a rule or
            outvoted in DETOX, once that happened so often that chance hardly explains it; see
            `OutlierTest` for how likely it is that an honest worker is excluded, and what that
            assumes. By default no outlier is excluded.
        measure_diversity: writes the gradient diversity of every round into its metrics, as
            estimated from messages of neither suspects nor outliers, see `DiversityMonitor`; for
            workers that draw their samples alike and send their gradients: under a rule, without
            transforms. Where a rule suspects honest messages, those left are alike, and the
            estimate is too low.
        test: data to evaluate on.
        validation: data to evaluate on beside them, for choices such as early stopping; or the
            share of the dataset that is drawn by the seed and held out for it.
        metrics: what is measured beside loss and accuracy, by name: functions of all outputs and
            targets that return a number, or objects with reset, update and compute as those of
            torchmetrics.
        out: a folder for metrics, checkpoints and weights, kept for this run alone while it goes;
            nothing is written if None. Arguments that do not fit leave nothing behind.
        resume: go on with the run in `out`, from its newest whole checkpoint. Give what it was
            begun with, the model as it was then, too, since parameters that are not trained are
            not saved: what differs is refused by name, but for `steps`, `engine`, `test`, `title`,
            `config`, `on_round`, and how often to evaluate and to write.
        changes: with `resume`, what is meant to differ from the run so far: `lr`, the learning rate
            of `optimizer` or `step`; `attack` and `byzantine`, when a simulated attack ends.
        evaluate_every: rounds between evaluations.
        checkpoint_every: rounds between checkpoints.
        title: what reports call the run.
        config: text that is kept in the folder as `config.yaml`: how to repeat the run.
        callbacks: what is called at the start, at rounds, evaluations and the end, and may stop the
            run: early stopping, loggers, or of your own.
        on_round: called after every round with its metrics.
        progress: whether progress is shown, a bar in terminals and notebooks, lines in logs; by
            default unless the environment variable PHALANX_PROGRESS is 0.

    Returns:
        The run. The model's batch normalisation, if any, has running statistics of its final
        weights.

    Raises:
        ValueError: if arguments do not fit, alone or together.
        LedgerError: if the privacy ledger of a run that goes on is missing, damaged or another's.
        FolderInUseError: if another process, or another call of this one, writes to `out`.
        CheckpointError: if there is nothing whole to resume from.
        StorageError: if the disk is full; `resume` goes on from the last checkpoint.
        WorkerError: if every worker raises an exception; its cause is one of them. `Local` raises
            the exception itself.
        EngineLostError: if what runs the workers is gone.
        TooManyByzantineError: if more workers fail in a round than the code or rule survives (its
            subclass `DecodeError` for codes). What was trained until then is in the last
            checkpoint.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the round is done and a checkpoint is
            written.
    """
    check_kinds(locals())
    if code is not None and rule is not None:
        raise ValueError("give a code or a rule, not both: a code decodes by itself")
    place(model, device)
    code = code if code is not None else Uncoded(num_workers, rule or Mean())
    if lr_scheduler is not None and step is not None:
        raise ValueError("lr_scheduler belongs to optimizer, and is not used by the step given")
    step = step or OptimizerStep(
        optimizer, lr_scheduler, lr_scheduler_interval, lr_scheduler_monitor
    )
    if max_grad_norm is not None:
        step = ClippedStep(step, max_grad_norm)
    compute = _in_precision(compute, mixed_precision)
    stages = Round(code, order, compute, transforms, attack, byzantine, step)
    if batch_size is None:
        batch_size = _SAMPLES * code.num_partitions
    dataset, held = split_off(dataset, validation, seed)
    sets = {name: data for name, data in (("test", test), ("validation", held)) if data is not None}
    job = Job(model, loss, dataset, stages, batch_size, seed)
    counts = {"evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    if exclude_after is not None:
        counts["exclude_after"] = exclude_after
    check_job(job, sets, counts if steps is None else {"steps": steps, **counts})
    evaluator = Evaluator(sets, metrics or {})
    check_monitor(lr_scheduler_monitor, evaluator.names)
    steps = rounds_in(steps, epochs, job.batches.rounds_per_epoch)
    reputation = _reputation(code, exclude_after, exclude_outliers, steps)
    check_resume(out, resume, changes)
    told = [*callbacks, *([OnRound(on_round)] if on_round is not None else [])]
    monitor = _monitor(job) if measure_diversity else None
    bound = order.bind(dataset, code.num_workers, stages.byzantine, seed)
    bound_job = replace(job, round=replace(stages, order=bound))
    if privacy is not None:
        bound_job, ledger = privacy.bind(bound_job, steps, resume=resume)
        told.append(ledger)
    with terminable(), owned(Path(out)) if out is not None else nullcontext():
        loop = Loop(
            bound_job,
            reputation,
            evaluator,
            Callbacks([*([ProgressBar()] if shown(progress) else []), *told]),
            RunFolder(Path(out), resume=resume) if out is not None else None,
            title,
            config,
            monitor,
        )
        if out is not None:
            loop.policy = repr(getattr(engine, "policy", None))
            loop.composition = composition(
                job,
                loop.step_state,
                exclude_after=exclude_after,
                measure_diversity=measure_diversity,
                **({} if privacy is None else {"privacy": privacy}),
            )
        first = loop.restore(changes) if resume else 0
        if first > steps:
            raise ValueError(
                f"steps must be at least the {first} rounds that are done, got {steps}"
            )
        return run_rounds(loop, engine, range(first, steps), evaluate_every, checkpoint_every)


def check_resume(out: Path | str | None, resume: bool, changes: Sequence[str]) -> None:
    """Raises ValueError unless a run can be resumed as asked."""
    if out is None and resume:
        raise ValueError("resume needs out, the folder of the run, got None")
    if unknown := [name for name in changes if name not in BY_INTENT]:
        raise ValueError(f"changes must be among {', '.join(BY_INTENT)}, got {unknown}")


def run_rounds(
    loop: Loop, engine: Engine, rounds: range, evaluate_every: int, checkpoint_every: int
) -> Run:
    """The rounds that are left, until the last, or until a callback, an error or a signal."""
    known = {} if loop.job.round.order.moves else loop.worker_states
    workers = TrainingWorkers(loop.job, known)
    return go_on(loop, lambda: engine.start(workers), rounds, evaluate_every, checkpoint_every)


def _in_precision(compute: Computation, mixed_precision: str) -> Computation:
    if mixed_precision == "no":
        return compute
    if mixed_precision not in ("bf16", "fp16"):
        raise ValueError(f"mixed_precision must be no, bf16 or fp16, got {mixed_precision!r}")
    return MixedPrecision(compute, "bfloat16" if mixed_precision == "bf16" else "float16")


def _monitor(job: Job) -> DiversityMonitor:
    stages, code = job.round, job.round.code
    plain = stages.compute == Gradient() and not stages.transforms and stages.order.shared
    if not plain or not isinstance(code, Uncoded):
        raise ValueError(
            "measure_diversity needs workers that send gradients of samples that are drawn alike: "
            "a rule, no transforms, no order with data of their own, no other computation"
        )
    return DiversityMonitor(code.num_workers, job.batches.size)


def _reputation(
    code: Code, exclude_after: int | None, exclude_outliers: OutlierTest | None, steps: int
) -> Reputation:
    given = {"exclude_after": exclude_after, "exclude_outliers": exclude_outliers}
    for name, value in given.items():
        if value is not None and code.num_tolerated == 0:
            raise ValueError(
                f"{name} needs a code or rule that survives Byzantine workers, got {value} with "
                "one that survives none"
            )
    if exclude_outliers is not None and code.exact:
        raise ValueError(
            f"exclude_outliers needs a rule, or a code with one, got {code}, which has no outliers"
        )
    return Reputation(exclude_after, code.num_tolerated, exclude_outliers, steps)
