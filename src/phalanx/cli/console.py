"""Console output of the commands: progress on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from phalanx.terminal import SafeConsole

console = SafeConsole(highlight=False)
complaints = SafeConsole(stderr=True, highlight=False)


def progress_bar() -> Progress:
    """A bar with the time left and a note; none where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=3600,
    )


@contextmanager
def round_progress(steps: int, title: str = "") -> Iterator[Callable[[Any], None]]:
    """A bar moved on by one call per round; it shows the loss, and who was named last."""
    with progress_bar() as bar:
        task = bar.add_task(title, total=steps, note="")

        def advance(entry: dict[str, Any]) -> None:
            loss = "" if entry["loss"] is None else f"loss {entry['loss']:.3g}"
            named = "".join(
                f"  {kind} {entry[kind]}" for kind in ("suspects", "outliers") if entry.get(kind)
            )
            missing = f"  missing {list(entry['missing'])}" if entry["missing"] else ""
            bar.update(task, completed=entry["step"] + 1, note=loss + named + missing)

        yield advance
