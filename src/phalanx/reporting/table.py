"""Comparison tables of runs, for the terminal and the report."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from phalanx.reporting.compare_runs import Row
from phalanx.reporting.format import difference, duration, percent, score, size

MEANINGS = {
    "test accuracy": "Share of the test set classified rightly after the last round.",
    "test loss": "Mean loss over the test set after the last round.",
    "largest |Δw|": "max |w - w_ref| over all weights of the run and of the reference.",
    "relative": "max |w - w_ref| / max |w_ref|.",
    "round": "Median seconds per round, everything included.",
    "sent": "Median bytes of messages per round, of all workers together.",
    "decode": "Median seconds per round spent on decoding the messages.",
    "precision": "Share of the suspected workers that were Byzantine, over all rounds.",
    "recall": "Share of Byzantine messages that entered decoding whose sender was suspected.",
    "proof": "The same of senders that were named for certain, which no rule can do.",
}
"""What each column says."""


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The headers after the run's title, and every row's cells; unused columns are left out."""
    figures = _figures(rows)
    table = [
        {
            "rounds": str(row.rounds),
            "test accuracy": percent(row.test_accuracy),
            **{name: _figure(row, name) for name in figures},
            "largest |Δw|": difference(row.weight_difference),
            "relative": difference(row.relative_difference),
            "round": duration(row.round_seconds),
            "decode": duration(row.decode_seconds),
            "sent": size(row.round_bytes),
            "precision": score(row.detection.precision),
            "recall": score(row.detection.recall),
            "proof": score(row.detection.proof),
        }
        for row in rows
    ]
    unused = set()
    if figures:
        unused.add("test accuracy")  # nobody has one
    if not any(row.is_reference for row in rows):
        unused |= {"largest |Δw|", "relative"}
    if len({row.round_bytes for row in rows}) == 1:
        unused.add("sent")  # nobody sends less than others
    if all(row.detection.verb == "named" for row in rows):
        unused.add("proof")  # nobody was suspected without
    headers = [name for name in table[0] if name not in unused] if table else []
    return headers, [[line[name] for name in headers] for line in table]


def _figures(rows: Sequence[Row]) -> list[str]:
    """What stands in place of the accuracy where no run has one: a metric, or else the loss."""
    if any(row.test_accuracy is not None for row in rows):
        return []
    names = [name for row in rows for name in row.evaluation]
    return [name.replace("_", " ") for name in names[:1]]


def _figure(row: Row, name: str) -> str:
    value = row.evaluation.get(name.replace(" ", "_"))
    return "—" if value is None else f"{value:.4g}"


def terminal_table(rows: Sequence[Row]) -> Table:
    """The comparison for a terminal of 80 columns or more; markup in titles is shown, not obeyed.

    How many rounds there were stands behind the titles of those runs that did not finish. The share
    that was proven is left to the report.

    >>> from rich.console import Console
    >>> from phalanx.reporting import Detection, Row
    >>> row = Row("mean", "finished", 60, 0.964, None, None, 0.01, 0.008, 0.001, Detection())
    >>> Console(width=80).print(terminal_table([row]))  # doctest: +NORMALIZE_WHITESPACE
    <BLANKLINE>
                     test
     run         accuracy    round  decode  precision  recall
     ─────────────────────────────────────────────────────────
     mean          96.4 %  10.0 ms  1.0 ms          —       —
    <BLANKLINE>
    """
    headers, lines = cells(rows)
    shown = [i for i, name in enumerate(headers) if name not in ("rounds", "proof")]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", overflow="fold", min_width=11)
    for i in shown:
        table.add_column(headers[i].replace(" ", "\n"), justify="right", no_wrap=True)
    for row, line in zip(rows, lines, strict=True):
        title = Text(row.title)
        if row.status != "finished":
            title.append(f" ({row.status} after {row.rounds})", style="bold")
        if row.is_reference:
            title.append(" (reference)", style="dim")
        table.add_row(title, *(line[i] for i in shown))
    return table
