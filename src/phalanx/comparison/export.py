"""A comparison for the terminal, for programs, for editors and for readers."""

import csv
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from phalanx.comparison.comparison import Comparison, Figure
from phalanx.comparison.heat_map import plot_heat_map
from phalanx.comparison.outcome import Outcome
from phalanx.docstrings import source
from phalanx.files import whole
from phalanx.reporting import Plot, Table, drawn, markdown_table, render_page
from phalanx.reporting.format import count, duration, listed, score

_WORST = "worst case"
_COLUMNS = 4  # attacks that fit beside one another on 80 columns
_SHORT = {"failed": "failed", "not applicable": "n/a"}
_READING = (
    "Final test accuracy in percent, mean ± standard deviation over {seeds}. A star marks the best "
    "of a column, † a method that was stopped, n/a one that does not apply."
)


def terminal_tables(comparison: Comparison) -> list[RichTable]:
    """A table for each split, and for every few attacks: each is readable on 80 columns."""
    return [
        _terminal_table(comparison, panel, chunk)
        for panel in comparison.grid.panels
        for chunk in _chunks([*comparison.grid.columns, _WORST])
    ]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Writes `comparison.csv`, `comparison.md` and `comparison.html`, each whole.

    Args:
        comparison: what came out.
        folder: where to; it is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (("csv", to_csv), ("md", to_markdown), ("html", to_html)):
        with whole(folder / f"comparison.{name}") as beside:
            beside.write_text(write(comparison), encoding="utf-8", newline="")


def to_csv(comparison: Comparison) -> str:
    """One line a run, with all that is known of it."""
    lines = [
        {
            **place._asdict(),
            **_flat(outcome),
            **{
                f"config.{name}": value if isinstance(value, int | str) else json.dumps(value)
                for name, value in comparison.grid.cells[place].config.items()
                if value is not None
            },
            "identity": comparison.grid.cells[place].identity,
        }
        for place, outcome in comparison.outcomes.items()
    ]
    names = dict.fromkeys(name for line in lines for name in line)
    written = io.StringIO()
    table = csv.DictWriter(written, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return written.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """The answer, the tables, and what did not run to its end."""
    lines = ["# Comparison", "", *(f"**{one}**\n" for one in comparison.answers)]
    for table in _tables(comparison):
        lines += [f"## {table.title}", "", table.caption, ""]
        lines += markdown_table(table.headers, table.rows)
    if notes := _notes(comparison):
        lines += ["## What did not run to its end, and warnings", ""]
        lines += [*(f"- {note}" for note in notes), ""]
    lines += ["## What was run", "", *markdown_table(("what", "value"), _facts(comparison))]
    return "\n".join(lines)


def to_html(comparison: Comparison) -> str:
    """One page with heat maps and tables, that needs nothing else."""
    grid = comparison.grid
    methods = count(len(grid.methods), "method")
    attacks = count(len(grid.columns) - 1, "attack")
    return render_page(
        "phalanx.comparison",
        "comparison.html.j2",
        title=f"{methods} under {attacks}",
        kind="Phalanx comparison",
        answer=" ".join(comparison.answers),
        origin="",
        plots=drawn([_heat_map(comparison, panel) for panel in grid.panels]),
        tables=_tables(comparison),
        notes=_notes(comparison),
        facts=dict(_facts(comparison)),
        sources=_sources(comparison),
    )


def figure_text(figure: Figure) -> str:
    """A share over seeds, in percent.

    >>> figure_text(Figure(0.9321, 0.004)), figure_text(Figure(0.1, None, "stopped"))
    ('93.2 ± 0.4', '10.0 †')
    """
    if figure.mean is None:
        return _SHORT.get(figure.status, "—")
    spread = "" if figure.spread is None else f" ± {100 * figure.spread:.1f}"
    return f"{100 * figure.mean:.1f}{spread}" + (" †" if figure.status == "stopped" else "")


def _flat(outcome: Outcome) -> dict[str, Any]:
    """The figures of an outcome, one value each."""
    found = outcome.detection
    content = outcome.to_json()
    counts = content.pop("detection")
    del content["accuracies"]
    content["warnings"] = "; ".join(outcome.warnings)
    told = content | counts | {"precision": found.precision, "recall": found.recall}
    return {name: "" if value is None else value for name, value in told.items()}


def _cells(comparison: Comparison, panel: str, method: str) -> dict[str, str]:
    """A row of a table: what stands under every attack, and in the worst case."""
    columns = comparison.grid.columns
    figures = {attack: comparison.accuracy(panel, method, attack) for attack in columns}
    worst = comparison.worst(panel, method)
    texts = {attack: figure_text(figure) for attack, figure in figures.items()}
    unapplied = {figure.status for figure in figures.values()} == {"not applicable"}
    return texts | {_WORST: figure_text(worst[1]) if worst else "n/a" if unapplied else "—"}


def _best(comparison: Comparison, panel: str, column: str) -> list[str]:
    return comparison.best(panel, None if column == _WORST else column)


def _terminal_table(comparison: Comparison, panel: str, columns: Sequence[str]) -> RichTable:
    table = RichTable(
        title=f"Test accuracy (%), {panel}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("method", overflow="fold", min_width=12)
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold", min_width=10)
    for method in comparison.grid.methods:
        row = _cells(comparison, panel, method)
        table.add_row(
            Text(method),
            *(
                Text(f"{row[column]}*", style="bold")
                if method in _best(comparison, panel, column)
                else Text(f"{row[column]} ")
                for column in columns
            ),
        )
    return table


def _chunks(columns: Sequence[str]) -> list[Sequence[str]]:
    """A few columns at a time, about as many each."""
    number = -(-len(columns) // (_COLUMNS + 1))
    size = -(-len(columns) // number)
    return [columns[start : start + size] for start in range(0, len(columns), size)]


def _tables(comparison: Comparison) -> list[Table]:
    return [
        table
        for panel in comparison.grid.panels
        for table in (_accuracy_table(comparison, panel), _other_table(comparison, panel))
    ]


def _accuracy_table(comparison: Comparison, panel: str) -> Table:
    columns = [*comparison.grid.columns, _WORST]
    rows = []
    for method in comparison.grid.methods:
        row = _cells(comparison, panel, method)
        starred = [
            row[column] + ("*" if method in _best(comparison, panel, column) else "")
            for column in columns
        ]
        rows.append((method, *starred))
    caption = _READING.format(seeds=count(len(comparison.grid.seeds), "seed"))
    return Table(f"Test accuracy, {panel}", caption, ("method", *columns), tuple(rows))


def _other_table(comparison: Comparison, panel: str) -> Table:
    rows = []
    for method in comparison.grid.methods:
        found = comparison.detection(panel, method)
        worst = comparison.worst(panel, method)
        round_s = comparison.seconds(panel, method, lambda outcome: outcome.round_seconds)
        decode_s = comparison.seconds(panel, method, lambda outcome: outcome.decode_seconds)
        rows.append(
            (
                method,
                worst[0] if worst else None,
                score(found.precision),
                score(found.recall),
                duration(round_s),
                duration(decode_s),
            )
        )
    headers = ("method", "worst under", "precision", "recall", "round", "decode")
    caption = (
        "Precision: share of the workers named that had lied; recall: share of the lies whose "
        "sender was named; both over all attacks. Seconds a round in all, and for decoding, as "
        "measured while other runs went on beside it."
    )
    return Table(f"Who was named, and how fast, {panel}", caption, headers, tuple(rows))


def _heat_map(comparison: Comparison, panel: str) -> Plot:
    grid = comparison.grid
    columns = [*grid.columns, _WORST]
    texts = [list(_cells(comparison, panel, method).values()) for method in grid.methods]
    values = [
        [
            *(comparison.accuracy(panel, method, attack).mean for attack in grid.columns),
            worst[1].mean if (worst := comparison.worst(panel, method)) else None,
        ]
        for method in grid.methods
    ]
    said = []
    for method, row in zip(grid.methods, texts, strict=True):
        pairs = [f"{column} {text}" for column, text in zip(columns, row, strict=True)]
        said.append(f"{method}: {listed(pairs)}.")
    alt = f"Heat map of test accuracy in percent on {panel}, methods by attacks. {' '.join(said)}"
    longest = [max(map(len, names)) for names in (grid.methods, columns)]  # letters, 0.08 inches
    size = (
        0.6 + 0.08 * longest[0] + 0.95 * len(columns),
        0.6 + 0.05 * longest[1] + 0.42 * len(grid.methods),
    )
    draw = partial(plot_heat_map, grid.methods, columns, values, texts)
    return Plot(f"Test accuracy, {panel}", "In percent. Brighter is better.", alt, draw, size)


def _notes(comparison: Comparison) -> list[str]:
    """What did not run to its end and why, then what was warned of."""
    notes = []
    for places, outcome in comparison.troubles():
        first = places[0]
        where = f"{first.method}, {first.split}"
        if outcome.status != "not applicable":
            attacks = listed(list(dict.fromkeys(place.attack for place in places)))
            where += f", {attacks} ({count(len(places), 'run')})"
        status: str = outcome.status
        if status == "stopped":
            rounds = sorted({comparison.outcomes[place].rounds for place in places})
            span = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"
            status += f" after {span} rounds"
        notes.append(f"{where}: {status}: {outcome.reason}")
    warned = dict.fromkeys(
        f"{place.method}: {text}"
        for place, outcome in comparison.outcomes.items()
        for text in outcome.warnings
    )
    return notes + list(warned)


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What all runs share."""
    grid = comparison.grid
    applicable = [one for one in comparison.outcomes.values() if one.status != "not applicable"]
    setting = grid.setting
    return [
        ("runs", f"{len(applicable)}"),
        ("seeds", listed([str(seed) for seed in grid.seeds])),
        ("workers", f"{setting.num_workers}, {setting.num_byzantine} of them bad under attack"),
        ("who is bad", repr(setting.schedule)),
        ("data", repr(setting.data)),
        ("rounds", f"{setting.steps}"),
        ("samples a round", f"{setting.samples}"),
        ("seconds in all runs", f"{sum(one.seconds or 0.0 for one in applicable):.0f}"),
    ]


def _sources(comparison: Comparison) -> list[str]:
    """The papers of the methods and attacks, each once."""
    cells = comparison.grid.cells.values()
    kinds = dict.fromkeys(
        type(part) for cell in cells for part in (cell.method, cell.attack) if part is not None
    )
    return list(dict.fromkeys(text for kind in kinds if (text := source(kind))))
