"""`phalanx train`: the stages of the round are its options."""

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Optimizer

import phalanx
from phalanx.aggregation import Aggregator
from phalanx.attacks import Attack, Schedule
from phalanx.cli.console import console, round_progress
from phalanx.coding import Code
from phalanx.compression import Compressor
from phalanx.data import DataSource, Digits, Partitioner
from phalanx.models import MLP
from phalanx.randomness import seeded
from phalanx.training import Engine, Local
from phalanx.transforms import WorkerMomentum

MakeModel = Callable[[tuple[int, ...], int], nn.Module]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


def default_out() -> Path:
    """A new folder, named after the time."""
    return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")


def train(
    code: Code | None = None,
    rule: Aggregator | None = None,
    num_workers: int = 15,
    attack: Attack | None = None,
    byzantine: Schedule | None = None,
    worker_momentum: WorkerMomentum | None = None,
    shards: Partitioner | None = None,
    compressor: Compressor | None = None,
    data: DataSource = Digits(),  # noqa: B008 - frozen
    model: MakeModel = MLP,
    optimizer: MakeOptimizer = lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
    engine: Engine = Local(),  # noqa: B008 - frozen
    steps: int = 200,
    batch_size: int | None = None,
    seed: int = 0,
    exclude_after: int | None = None,
    measure_diversity: bool = False,
    device: str = "cpu",
    evaluate_every: int = 20,
    checkpoint_every: int = 20,
    title: str | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    _config: str | None = None,
) -> None:
    """Trains a model and writes a run folder: config, metrics, checkpoints, weights, report.

    Example: phalanx train --code DracoCyclic --code.num_workers 9 --code.num_byzantine 2
    --attack ReverseGradient --steps 60 --seed 3 --out runs/a

    Args:
        code: A gradient code; it decodes by itself and says how many workers there are.
        rule: A robust rule instead of a code; the plain mean if neither is given.
        num_workers: Workers under a rule.
        attack: A drill: what bad workers do.
        byzantine: A drill: who is bad when; as many as the code or rule survives, drawn anew every
            round, if not given.
        worker_momentum: Workers send the momentum of their messages; not if not given.
        shards: Workers have data of their own, dealt out so; under a rule only.
        compressor: Workers encode what they send; not if not given.
        data: What to train and test on.
        model: A class that is called with the shape of an input and the number of classes.
        optimizer: Any torch optimizer, by name.
        engine: Where the workers run.
        steps: Rounds in all.
        batch_size: Samples a round, over all partitions; 16 a partition if not given.
        seed: Of everything random: weights, order, drills.
        exclude_after: Exclude a worker for good once it was suspected in so many rounds more than
            its messages were held good; nobody if not given.
        measure_diversity: Write the gradient diversity of every round into the metrics.
        device: Where the server keeps the model: cpu, cuda, cuda:1, ...
        evaluate_every: Rounds between evaluations on the test set.
        checkpoint_every: Rounds between checkpoints.
        title: What reports call the run.
        out: The run folder; a new one under runs/ if not given.
        resume: Go on with the run in this folder; other options change it.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reporting import answer, compare_runs, load_run, terminal_table, write_report

    folder = _run_folder(out, resume)
    home = usable(device)
    splits = data.load()
    with seeded(seed, "weights"):
        module = model(splits.input_shape, splits.num_classes).to(home)
    with round_progress(steps, title or folder.name) as advance:
        try:
            phalanx.train(
                module,
                splits.train,
                code,
                rule=rule,
                num_workers=num_workers,
                attack=attack,
                byzantine=byzantine,
                worker_momentum=worker_momentum,
                shards=shards,
                compressor=compressor,
                engine=engine,
                optimizer=optimizer,
                steps=steps,
                batch_size=batch_size,
                seed=seed,
                exclude_after=exclude_after,
                measure_diversity=measure_diversity,
                test=splits.test,
                out=folder,
                resume=resume is not None,
                evaluate_every=evaluate_every,
                checkpoint_every=checkpoint_every,
                title=title,
                config=_config,
                on_round=advance,
            )
        finally:
            if (folder / "metrics.jsonl").exists():
                write_report([load_run(folder)], folder / "report.html")
    records = [load_run(folder)]
    rows = compare_runs(records)
    console.print(terminal_table(rows))
    console.print(answer(records, rows))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)


def _run_folder(out: Path | None, resume: Path | None) -> Path:
    """The run's folder; refused before any work if it does not fit."""
    if resume is not None:
        if out is not None:
            raise ValueError(f"out cannot be given with resume: the run stays in {resume}")
        if not (resume / "config.yaml").is_file():
            raise ValueError(
                f"resume must name the folder of a run of `phalanx train`, got {resume}, which "
                "holds no config.yaml"
            )
        return resume
    folder = out or default_out()
    if (folder / "metrics.jsonl").exists():
        raise ValueError(
            f"out must be a new folder, got {folder}, which holds a run; go on with it by "
            f"`phalanx train --resume {folder}`"
        )
    return folder


def usable(device: str) -> torch.device:
    """The device of that name, if this machine has it."""
    try:
        home = torch.device(device)
        torch.empty(0, device=home)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device must be one that can be used here, got {device!r}: {reason}"
        ) from error
    return home
