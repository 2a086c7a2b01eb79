"""What the commands print to: progress on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)


@contextmanager
def round_progress(steps: int, title: str = "", done: int = 0) -> Iterator[Callable[[Any], None]]:
    """A bar that one call a round moves on; it shows the loss, and who was named last."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=steps, completed=done, note="")

        def advance(entry: dict[str, Any]) -> None:
            loss = "" if entry["loss"] is None else f"loss {entry['loss']:.3g}"
            named = f"  suspects {entry['suspects']}" if entry["suspects"] else ""
            missing = f"  missing {list(entry['missing'])}" if entry["missing"] else ""
            bar.update(task, advance=1, note=loss + named + missing)

        yield advance
