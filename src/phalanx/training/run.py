"""Training: rounds until done, each of them written down, each of them repeatable."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.attacks import Attack, RandomWorkers, Schedule
from phalanx.batch_size.diversity_monitor import DiversityMonitor
from phalanx.coding import Code
from phalanx.compression import Compressor
from phalanx.data import Partitioner
from phalanx.errors import TooManyByzantineError
from phalanx.losses import Loss, cross_entropy
from phalanx.ordering.client_data import deal
from phalanx.parameters import trained_parameters
from phalanx.training.checks import check_job, check_optimizer
from phalanx.training.decoding import Decoder, Uncoded, decoder
from phalanx.training.engines.base import Engine
from phalanx.training.engines.local import Local
from phalanx.training.interruption import graceful
from phalanx.training.job import Job
from phalanx.training.loop import Loop, Run
from phalanx.training.reputation import Reputation
from phalanx.training.run_folder import RunFolder
from phalanx.transforms.worker_momentum import WorkerMomentum

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
_SAMPLES = 16  # a partition, unless the batch size is given


def default_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """SGD with learning rate 0.1 and momentum 0.9."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def train(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, ...]],
    code: Code | None = None,
    *,
    rule: Aggregator | None = None,
    num_workers: int = 15,
    attack: Attack | None = None,
    byzantine: Schedule | None = None,
    worker_momentum: WorkerMomentum | None = None,
    shards: Partitioner | None = None,
    compressor: Compressor | None = None,
    engine: Engine | None = None,
    optimizer: MakeOptimizer = default_optimizer,
    loss: Loss = cross_entropy,
    steps: int = 200,
    batch_size: int | None = None,
    seed: int = 0,
    exclude_after: int | None = None,
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
    """Trains a model on workers some of which may lie, lag or die.

    The same arguments give the same weights, on any engine, interrupted or not: order, batches,
    drills and random layers follow from `seed` and the number of the round.

    Args:
        model: any module; its parameters are trained in place.
        dataset: pairs of input and target.
        code: a gradient code; it also says how many workers there are.
        rule: a robust rule instead of a code; each of `num_workers` workers then computes the
            gradient of one partition. The plain mean if neither is given.
        num_workers: workers under a rule.
        attack: a drill: what bad workers do.
        byzantine: a drill: who is bad when; by default as many as the code or rule survives, drawn
            afresh every round.
        worker_momentum: what workers remember of their messages, and send; nothing by default.
        shards: how the data are dealt out to workers that have data of their own; by default every
            sample may fall to every worker. Under a rule only. Workers that are bad for good hold
            random samples of all classes.
        compressor: how workers encode what they send; not at all by default. Each tensor of the
            model is encoded alone, and what an `ErrorFeedback` left out is kept by the worker. The
            server decodes, then the code or rule does. Codes that compare replicas, or look for
            lies in what does not fit, refuse compressors that would make honest workers differ.
        engine: where the workers run; in this process by default.
        optimizer: makes the optimizer from the parameters.
        loss: mean loss of a batch from the model's output and the targets; by default torch's
            cross-entropy, which outputs `(batch, length, classes)` may come to, too.
        steps: rounds in all, those before an interruption included.
        batch_size: samples a round over all partitions; a multiple of their number. 16 a partition
            by default.
        seed: of everything random.
        exclude_after: excludes a worker for good once it was suspected in so many rounds more than
            its messages were held good, see `Reputation`; no more workers than the code or rule
            survives. By default nobody is excluded.
        measure_diversity: writes the gradient diversity of every round into its metrics, as
            estimated from messages that are not suspected, see `DiversityMonitor`; for workers that
            draw their samples alike and send their gradients: under a rule, without momentum or
            compressor. Where a rule suspects honest messages, those left are alike, and the
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
    if code is None and rule is None:
        rule = Mean()
    decoding = decoder(code, rule, num_workers)
    if attack is not None and byzantine is None:
        byzantine = RandomWorkers(_survived(code or rule))
    if batch_size is None:
        batch_size = _SAMPLES * decoding.code.num_partitions
    job = Job(
        model,
        loss,
        dataset,
        decoding.code,
        batch_size,
        seed,
        attack,
        byzantine,
        worker_momentum,
        compressor=compressor,
    )
    counts = {
        "steps": steps,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
    }
    if exclude_after is not None:
        counts["exclude_after"] = exclude_after
    check_job(job, test, counts, shards)
    reputation = _reputation(decoding, exclude_after)
    monitor = _monitor(job, shards) if measure_diversity else None
    if shards is not None:
        job = replace(job, shards=deal(shards, dataset, job.code.num_workers, byzantine, seed))
    if out is None and resume:
        raise ValueError("resume needs out, the folder of the run, got None")
    folder = RunFolder(Path(out), resume=resume) if out is not None else None
    made = optimizer(trained_parameters(model))
    check_optimizer(made)
    loop = Loop(job, decoding, reputation, made, test, folder, title, config, monitor)
    first = loop.restore() if resume else 0
    if first > steps:
        raise ValueError(f"steps must be at least the {first} rounds that are done, got {steps}")
    with (engine or Local()).start(job) as session, graceful() as interrupted:
        session.exclude(loop.standing.out)
        for step in range(first, steps):
            last = step + 1 == steps
            try:
                entry = loop.round(session, step, evaluate=last or (step + 1) % evaluate_every == 0)
            except TooManyByzantineError as error:
                loop.checkpoint(session, step)
                loop.finish(step, stopped=str(error))
                error.add_note(f"stopped in round {step}; the weights before it are kept")
                raise
            if on_round is not None:
                on_round(entry)
            if last or interrupted() or (step + 1) % checkpoint_every == 0:
                loop.checkpoint(session, step + 1)
            if interrupted() and not last:
                kept = "; a checkpoint is written" if folder is not None else ""
                raise KeyboardInterrupt(f"stopped after {step + 1} of {steps} rounds{kept}")
    return loop.finish(steps)


def _survived(method: Code | Aggregator | None) -> int:
    found = getattr(method, "num_byzantine", None)
    if found is None:
        raise ValueError(
            f"byzantine must say who is bad: {method} does not say how many liars it survives"
        )
    return int(found)


def _monitor(job: Job, shards: Partitioner | None) -> DiversityMonitor:
    changed = job.worker_momentum is not None or job.compressor is not None
    if changed or shards is not None or not isinstance(job.code, Uncoded):
        raise ValueError(
            "measure_diversity needs workers that send gradients of samples that are drawn alike: "
            "a rule, no worker_momentum, no compressor, no shards"
        )
    return DiversityMonitor(job.code.num_workers, job.batch_size // job.code.num_partitions)


def _reputation(decoding: Decoder, exclude_after: int | None) -> Reputation:
    if exclude_after is None:
        return Reputation()
    if decoding.num_tolerated == 0:
        raise ValueError(
            f"exclude_after needs a code or rule that survives liars, got {exclude_after} with one "
            "that survives none"
        )
    return Reputation(exclude_after, decoding.num_tolerated)
