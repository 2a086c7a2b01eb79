"""`phalanx compare`: methods under attacks, on splits, over seeds."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import phalanx
from phalanx.aggregation import Aggregator
from phalanx.attacks import Attack
from phalanx.cli.console import console, progress_bar
from phalanx.cli.train import MakeModel
from phalanx.coding import Code
from phalanx.compression import Compressor
from phalanx.data import DataSource, Digits, Partitioner
from phalanx.errors import PhalanxError
from phalanx.models import MLP
from phalanx.terminal import Lines
from phalanx.transforms import MessageTransform


def compare(
    rules: list[Aggregator] | None = None,
    codes: list[Code] | None = None,
    attacks: list[Attack] | None = None,
    splits: list[Partitioner] | None = None,
    shared_data: bool = False,
    chains: list[list[MessageTransform]] | None = None,
    compressors: list[Compressor] | None = None,
    seeds: list[int] = [0, 1],  # noqa: B006 - never changed
    num_byzantine: int = 3,
    data: DataSource = Digits(),  # noqa: B008 - frozen
    model: MakeModel = MLP,
    steps: int = 100,
    jobs: int | None = None,
    out: Path | None = None,
    _config: str | None = None,
    **options: Any,
) -> None:
    """Runs every method under every attack, on every split, with every seed; shows who held.

    The plain mean and "no attack" are always among them. Every run is kept in the folder when it is
    done: the same command goes on where a comparison was stopped or killed, and one that asks for
    more runs what is new.

    Example: phalanx compare --rules+ Krum --rules+ Pipeline --rules.before+ NearestNeighborMixing
    --rules.rule TrimmedMean --attacks+ SignFlip --attacks+ ReverseGradient --attacks.scale 10
    --seeds [0,1,2] --steps 60 --out runs/held

    Args:
        rules: Robust rules; `+` adds one, and its fields follow. A choice of four if neither rules
            nor codes are given.
        codes: Gradient codes; repetition if neither rules nor codes are given.
        attacks: What Byzantine workers do; a choice of four if not given.
        splits: Who holds which samples; all workers draw from the whole data set if not given.
            Codes do not apply where workers hold samples of their own.
        shared_data: Whether to compare also where all workers draw from the whole data set.
        chains: What workers do to their messages, a list of transforms for each comparison; sent
            as they are if not given.
        compressors: What messages are encoded by, after the chain; `+` adds one. Each method is
            compared without, and with each of them, beside the bytes that it sends.
        seeds: A run each, of which mean and spread are shown.
        num_byzantine: How many workers are Byzantine; methods that leave theirs at the default are
            told it, and how many workers there are.
        data: What to train and test on.
        model: A class that is called with the shape of an input and the number of classes.
        steps: Rounds of every run.
        jobs: Processes, of one thread each; as many as there are processors if not given.
        out: Folder for runs, tables and report; a new one under runs/ if not given.
        options: Those of `phalanx.train`.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.experiments import compare as run

    assert out is not None  # `main` has chosen one
    with progress_of_cells() as watch:
        found = run(
            rules=rules,
            codes=codes,
            attacks=attacks,
            splits=[*([None] if shared_data or not splits else []), *(splits or [])],
            chains=chains or [[]],
            compressors=compressors or [],
            seeds=seeds,
            num_byzantine=num_byzantine,
            data=data,
            model=plain(model),
            steps=steps,
            jobs=jobs,
            out=out,
            config=_config,
            watch=watch,
            **{name: plain(value) for name, value in options.items()},
        )
    for panel in found.panels:
        for table in panel.terminal_tables:
            console.show(table)
    for answer in found.answers:
        console.print(answer, markup=False)
    console.print(f"Report: {out / 'comparison.html'}", soft_wrap=True)
    if failed := [one for one in found.records if one.status == "failed"]:
        first = failed[0]
        error = PhalanxError(f"{len(failed)} runs failed, first {first}: {first.reason}")
        error.add_note(first.traceback or "")
        raise error


# All else of a run: nobody lists it a second time. What differs from run to run is left out, and
# what is of use in a run folder only.
compare.options_of = phalanx.train  # type: ignore[attr-defined]
compare.given = (  # type: ignore[attr-defined]
    *("dataset", "code", "rule", "attack", "transforms", "seed", "loss", "test", "engine"),
    *("resume", "changes", "checkpoint_every", "title", "config", "on_round", "progress"),
    *("callbacks", "validation", "metrics", "epochs", "device"),
)


def plain(made: Any) -> Any:
    """What the parser makes of a class and its fields, as a partial of the class itself."""
    if isinstance(made, partial) and made.args and isinstance(made.args[-1], type):
        return partial(made.args[-1], **made.keywords)
    return made


@contextmanager
def progress_of_cells() -> Iterator[Callable[[Any], None]]:
    """A bar over all runs, with the time left and what is running; lines if not on a terminal."""
    lines = None if console.is_terminal else Lines()
    with progress_bar() as bar:
        task = bar.add_task("comparing", total=None, note="")

        def watch(progress: Any) -> None:
            if bar.tasks[0].total is None:  # runs found in the folder do not count for the speed
                bar.reset(task, total=progress.total, completed=progress.found)
            running = [_told(cell.labels) for cell in progress.running]
            note = "; ".join(running[:2]) + (f" +{len(running) - 2}" if len(running) > 2 else "")
            bar.update(task, completed=progress.done, note=note)
            if lines is not None:
                lines.update(f"{progress.done} of {progress.total} runs are done; {note}")

        yield watch


def _told(labels: Mapping[str, Any]) -> str:
    """What is running: the method and the attack, by whatever name."""
    parts = (
        labels.get("method", labels.get("defence")),
        labels.get("attack", labels.get("attacker")),
    )
    return " / ".join(str(one) for one in parts if one is not None)
