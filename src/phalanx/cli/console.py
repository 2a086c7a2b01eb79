"""Console output of the commands: progress on a terminal, plain lines elsewhere."""

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
