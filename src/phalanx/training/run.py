"""Training runs: `train` runs rounds, records them, and resumes them bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import Dataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.attacks import Attack, Schedule
from phalanx.batch_size import DiversityMonitor
from phalanx.coding import Code, Uncoded
from phalanx.computations import Computation, Gradient
from phalanx.errors import TooManyByzantineError
from phalanx.losses import Loss, cross_entropy
from phalanx.ordering import Order, RandomReshuffling
from phalanx.training.checks import check_job
from phalanx.training.engines.base import Engine
from phalanx.training.engines.local import Local
from phalanx.training.interruption import graceful
from phalanx.training.job import Job
from phalanx.training.loop import Loop, Run
from phalanx.training.reputation import OutlierTest, Reputation
from phalanx.training.round import Round
from phalanx.training.run_folder import RunFolder
from phalanx.training.server_step import MakeOptimizer, OptimizerStep, ServerStep
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
    loss: Loss = cross_entropy,
    engine: Engine = Local(),  # noqa: B008 - frozen
    steps: int = 200,
    batch_size: int | None = None,
    seed: int = 0,
    exclude_after: int | None = None,
    exclude_outliers: OutlierTest | None = None,
    measure_diversity: bool = False,
    test: Dataset[tuple[Tensor, ...]] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    evaluate_every: int = 20,
    checkpoint_every: int = 20,
    title: str | None = None,
    config: str | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
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
        loss: mean loss of a batch from the model's output and the targets; by default torch's
            cross-entropy, which outputs `(batch, length, classes)` may come to, too.
        engine: where the workers run; in this process by default.
        steps: rounds in all, those before an interruption included.
        batch_size: samples per round over all partitions; a multiple of their number. 16 per
            partition by default.
        seed: of everything random.
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
        out: a folder for metrics, checkpoints and weights; nothing is written if None. It is made
            once the first round has been decoded: arguments that do not fit leave nothing behind.
        resume: go on with the run in `out`, from its last checkpoint; give the model as it was when
            the run began, since parameters that are not trained are not saved.
        evaluate_every: rounds between evaluations.
        checkpoint_every: rounds between checkpoints.
        title: what reports call the run.
        config: text that is kept in the folder as `config.yaml`: how to repeat the run.
        on_round: called after every round with its metrics.

    Returns:
        The run. The model's batch normalisation, if any, has running statistics of its final
        weights.

    Raises:
        ValueError: if arguments do not fit, alone or together.
        TooManyByzantineError: if more workers fail in a round than the code or rule survives (its
            subclass `DecodeError` for codes). What was trained until then is in the last
            checkpoint.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the round is done and a checkpoint is
            written.
    """
    if code is not None and rule is not None:
        raise ValueError("give a code or a rule, not both: a code decodes by itself")
    code = code if code is not None else Uncoded(num_workers, rule or Mean())
    stages = Round(
        code, order, compute, transforms, attack, byzantine, step or OptimizerStep(optimizer)
    )
    if batch_size is None:
        batch_size = _SAMPLES * code.num_partitions
    job = Job(model, loss, dataset, stages, batch_size, seed)
    counts = {
        "steps": steps,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
    }
    if exclude_after is not None:
        counts["exclude_after"] = exclude_after
    check_job(job, test, counts)
    reputation = _reputation(code, exclude_after, exclude_outliers, steps)
    monitor = _monitor(job) if measure_diversity else None
    bound = order.bind(dataset, code.num_workers, stages.byzantine, seed)
    job = replace(job, round=replace(stages, order=bound))
    if out is None and resume:
        raise ValueError("resume needs out, the folder of the run, got None")
    folder = RunFolder(Path(out), resume=resume) if out is not None else None
    loop = Loop(job, reputation, test, folder, title, config, monitor)
    first = loop.restore() if resume else 0
    if first > steps:
        raise ValueError(f"steps must be at least the {first} rounds that are done, got {steps}")
    workers = TrainingWorkers(job, loop.worker_states)
    with engine.start(workers) as session, graceful() as interrupted:
        session.dismiss(loop.standing.out)
        for number in range(first, steps):
            last = number + 1 == steps
            due = last or (number + 1) % evaluate_every == 0
            try:
                entry = loop.round(session, number, evaluate=due)
            except TooManyByzantineError as error:
                loop.checkpoint(session, number)
                loop.finish(number, stopped=str(error))
                error.add_note(f"stopped in round {number}; the weights before it are kept")
                raise
            if on_round is not None:
                on_round(entry)
            if last or interrupted() or (number + 1) % checkpoint_every == 0:
                loop.checkpoint(session, number + 1)
            if interrupted() and not last:
                kept = "; a checkpoint is written" if folder is not None else ""
                raise KeyboardInterrupt(f"stopped after {number + 1} of {steps} rounds{kept}")
    return loop.finish(steps)


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
