"""`phalanx train`: the stages of the round are its options."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

import phalanx
from phalanx.cli.console import console
from phalanx.cli.run_report import reported
from phalanx.data import DataSource, Digits
from phalanx.losses import cross_entropy
from phalanx.models import MLP
from phalanx.randomness import seeded
from phalanx.training.arguments import usable

MakeModel = Callable[[tuple[int, ...], int], nn.Module]


def default_out() -> Path:
    """A new folder, named after the time."""
    return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")


def train(
    data: DataSource = Digits(),  # noqa: B008 - frozen
    model: MakeModel = MLP,
    device: str = "cpu",
    validation: float | None = None,
    title: str | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    _config: str | None = None,
    **options: Any,
) -> None:
    """Trains a model and writes a run folder: config, metrics, checkpoints, weights, report.

    The stages of the round are options, and so is all else that `phalanx.train` takes.

    Example: phalanx train --code DracoCyclic --code.num_workers 9 --code.num_byzantine 2
    --attack ReverseGradient --steps 60 --seed 3 --out runs/a

    Args:
        data: What to train and test on.
        model: A class that is called with the shape of an input and the number of classes.
        device: Where the server keeps the model: cpu, cuda, cuda:1, ...
        validation: Share of the training data that is held out, drawn by the seed, for choices
            such as early stopping.
        title: What reports call the run.
        out: The run folder; a new one under runs/ if not given.
        resume: Go on with the run in this folder; its options are kept, and the others may be
            given anew: how many steps, the engine, how often to evaluate and to write.
        options: Those of `phalanx.train`.
    """
    folder = run_folder(out, resume)
    home = usable(device)
    splits = data.load()
    with seeded(options["seed"], "weights"):
        module = model(splits.input_shape, splits.num_classes).to(home)
    with reported(folder):
        run = phalanx.train(
            module,
            splits.train,
            loss=cross_entropy,
            test=splits.test,
            validation=validation,
            out=folder,
            resume=resume is not None,
            title=title,
            config=_config,
            **options,
        )
    if run.privacy:
        console.print(run.privacy, markup=False, soft_wrap=True)


# The stages of the round and the rest: nobody lists them a second time.
train.options_of = phalanx.train  # type: ignore[attr-defined]
train.given = ("dataset", "loss", "test", "config", "on_round")  # type: ignore[attr-defined]


def run_folder(out: Path | None, resume: Path | None, command: str = "train") -> Path:
    """The run's folder; refused before any work if it does not fit."""
    if resume is not None:
        if out is not None:
            raise ValueError(f"out cannot be given with resume: the run stays in {resume}")
        if not (resume / "config.yaml").is_file():
            raise ValueError(
                f"resume must name the folder of a run of `phalanx {command}`, got {resume}, which "
                "holds no config.yaml"
            )
        return resume
    folder = out or default_out()
    if (folder / "metrics.jsonl").exists():
        raise ValueError(
            f"out must be a new folder, got {folder}, which holds a run; go on with it by "
            f"`phalanx {command} --resume {folder}`"
        )
    return folder
