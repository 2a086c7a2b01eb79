"""Progress of a run: a bar in terminals and notebooks, plain lines in logs."""

import os
import time
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from phalanx.terminal import SafeConsole
from phalanx.training.callbacks import Callback
from phalanx.training.run_record import Run

VARIABLE = "PHALANX_PROGRESS"
"""The environment variable that silences progress where it is `0`."""

_PAUSE_S = (10.0, 60.0)  # between two lines: at first, and once the run is long


def shown(progress: bool | None) -> bool:
    """Whether progress is shown: as asked for, else unless the environment says no."""
    if progress is not None:
        return progress
    return os.environ.get(VARIABLE, "1").lower() not in ("0", "false", "no", "off")


class ProgressBar(Callback):
    """Progress on standard error: rounds, time left, loss, and who was suspected or missing.

    A bar in terminals and notebooks. Elsewhere, as in logs, lines without escape sequences: after
    10 seconds, then at pauses that grow to a minute, and at the end.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or SafeConsole(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._next, self._pause = 0.0, _PAUSE_S[0]

    def on_start(self, run: Run) -> None:
        """Begins to show."""
        self._next, self._pause = time.monotonic() + _PAUSE_S[0], _PAUSE_S[0]
        bare = self._console.is_jupyter and find_spec("ipywidgets") is None  # rich needs it
        if bare or not (self._console.is_terminal or self._console.is_jupyter):
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        bar = Progress(*columns, console=self._console, transient=True, speed_estimate_period=3600)
        bar.add_task(run.title, total=run.steps, completed=run.done, note="")
        try:
            bar.start()
        except LiveError:  # there is a bar of somebody else's
            return
        self._bar = bar

    def on_round(self, run: Run, entry: dict[str, Any]) -> None:
        """Moves on."""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=run.done, total=run.steps, note=_note(entry))
        elif time.monotonic() >= self._next:
            self._line(run, entry)
            self._next = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _PAUSE_S[1])

    def on_end(self, run: Run) -> None:
        """Takes the bar away, or says how it ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif run.rounds:
            self._line(run, run.rounds[-1])

    def _line(self, run: Run, entry: dict[str, Any]) -> None:
        evaluation = "".join(
            f"  {name} {entry[name]:.4g}" for name in run.evaluated if entry.get(name) is not None
        )
        line = f"{run.title}: round {run.done} of {run.steps}  {_note(entry)}{evaluation}"
        self._console.print(line, markup=False, soft_wrap=True)


def _note(entry: dict[str, Any]) -> str:
    loss = "" if entry["loss"] is None else f"loss {entry['loss']:.3g}"
    named = "".join(
        f"  {kind} {entry[kind]}" for kind in ("suspects", "outliers") if entry.get(kind)
    )
    missing = f"  missing {list(entry['missing'])}" if entry["missing"] else ""
    return loss + named + missing
