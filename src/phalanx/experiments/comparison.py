"""What a comparison came to: means and spreads over seeds, worst cases, tables and pages."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from phalanx.docstrings import source
from phalanx.experiments.grid import Cell
from phalanx.experiments.plots import heat_map
from phalanx.experiments.records import Pivot, Record, Records, Status, mean, pivot, spread
from phalanx.files import whole
from phalanx.reporting import Detection, Plot, Table, drawn, markdown_table, render_page
from phalanx.reporting.format import count, duration, listed, percent, score
from phalanx.reporting.format import size as num_bytes

MEAN, NO_ATTACK, WORST = "Mean", "no attack", "worst case"
_ORDER: tuple[Status, ...] = ("finished", "stopped", "failed", "not applicable")
_COSTS = ("bytes", "round", "decode")
_COLUMNS = 4  # attacks that fit beside one another on 80 columns
_SHORT = {"failed": "failed", "not applicable": "n/a"}
_READING = (
    "Final test accuracy in percent, mean ± standard deviation over {seeds}. A star marks the best "
    "of a column, † a method that was stopped, n/a one that does not apply."
)
_DETECTION = (
    "Precision: share of the workers suspected that had sent a Byzantine message; recall: share of "
    "the Byzantine messages whose sender was suspected; proof: share of those whose sender was "
    "named for certain, which only codes can do; all over all attacks. Bytes of all messages of a "
    "round; seconds per round in all, and for decoding, as measured while other runs went on "
    "beside it."
)


@dataclass(frozen=True)
class Figure:
    """Test accuracy over seeds.

    >>> str(Figure(0.9321, 0.004)), str(Figure(0.1, None, "stopped"))
    ('93.2 ± 0.4', '10.0 †')
    """

    mean: float | None
    """Mean over the seeds; None if it was not measured with every one of them."""
    spread: float | None
    """Standard deviation over the seeds (n - 1); None for fewer than two."""
    status: Status = "finished"
    """The worst status among the seeds."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Figure":
        """The figure of the runs of one method under one attack, one per seed."""
        values = [one["test_accuracy"] for one in records]
        status = max((one.status for one in records), key=_ORDER.index)
        if None in values:
            return cls(None, None, status)
        return cls(mean(values), spread(values), status)

    @property
    def tenths(self) -> float:
        """The mean in tenths of a percent, as tables show it."""
        return -math.inf if self.mean is None else float(round(1000 * self.mean))

    def __str__(self) -> str:
        if self.mean is None:
            return _SHORT.get(self.status, "—")
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{spread}" + (" †" if self.status == "stopped" else "")


class Panel:
    """The runs on one split of the data: a table of methods by attacks, and their worst cases."""

    def __init__(self, name: str, records: Records) -> None:
        self.name, self.records = name, records
        self.figures: Pivot = pivot(records, "method", "attack", lambda one: one, Figure.of)
        self.methods = [str(row) for row in self.figures.rows]
        self.attacks = [str(column) for column in self.figures.columns]
        self.columns = [*self.attacks, WORST]

    def accuracy(self, method: str, column: str) -> Figure:
        """Final test accuracy under an attack; no figure if a worst case is not known."""
        if column != WORST:
            found: Figure = self.figures[method, column]
            return found
        if (worst := self.worst(method)) is not None:
            return self.accuracy(method, worst)
        skipped = all(one.status == "not applicable" for one in self.figures.row(method))
        return Figure(None, None, "not applicable" if skipped else "finished")

    def worst(self, method: str) -> str | None:
        """The attack under which a method is least accurate.

        None if any attack was not measured: the worst case is then not known.
        """
        found = {attack: self.accuracy(method, attack).mean for attack in self.attacks}
        if None in found.values():
            return None
        return min(found, key=lambda attack: found[attack] or 0.0)

    def best(self, column: str = WORST) -> list[str]:
        """The methods that are most accurate, to a tenth of a percent."""
        found = {method: self.accuracy(method, column).tenths for method in self.methods}
        top = max(found.values())
        return [method for method, value in found.items() if value == top > -math.inf]

    def texts(self, method: str, star: str = "*", no_star: str = "") -> list[str]:
        """What stands in the columns of a row, the best of a column with a star."""
        return [
            f"{self.accuracy(method, column)}{star if method in self.best(column) else no_star}"
            for column in self.columns
        ]

    @property
    def answer(self) -> str:
        """Who had the best worst case, and where the plain mean was as good, in a sentence."""
        winners = self.best()
        if not winners:
            return f"On {self.name} no method was measured under every attack."
        attack = self.worst(winners[0]) or NO_ATTACK
        share = percent(self.accuracy(winners[0], attack).mean)
        when = "without an attack" if attack == NO_ATTACK else f"under {attack}"
        if len({self.accuracy(winners[0], one).tenths for one in self.attacks}) == 1:
            when = "the same under every attack"
        if MEAN in winners:
            others = [method for method in winners if method != MEAN]
            also = f", and so had {listed(others)}" if others else ""
            return (
                f"On {self.name} the plain mean itself had the best worst case, {share} {when}"
                f"{also}: no method was needed here."
            )
        sentence = f"On {self.name} {listed(winners)} had the best worst case, {share}"
        sentence += f" ({when})" if len(winners) == 1 else ""
        return f"{sentence}; {self._mean_against(winners[0])}."

    def _mean_against(self, winner: str) -> str:
        """Where the plain mean did as well as the winner, or better."""
        as_well: list[str] = []
        better: list[str] = []
        for attack in self.attacks:
            plain, robust = (self.accuracy(one, attack).tenths for one in (MEAN, winner))
            if plain >= robust:
                (as_well if plain == robust else better).append(attack)
        where = [
            f"{how} under {listed(attacks)}".replace(f"under {NO_ATTACK}", f"with {NO_ATTACK}")
            for how, attacks in (("as well", as_well), ("better", better))
            if attacks
        ]
        return "the plain mean did " + (
            listed(where) if where else "worse everywhere, without an attack too"
        )

    @property
    def tables(self) -> list[Table]:
        """Accuracy, then who was named and how fast."""
        seeds = count(len(self.records.labels("seed")), "seed")
        return [
            Table(
                f"Test accuracy, {self.name}",
                _READING.format(seeds=seeds),
                ("method", *self.columns),
                tuple((method, *self.texts(method)) for method in self.methods),
            ),
            Table(
                f"Who was named, and how fast, {self.name}",
                _DETECTION,
                ("method", "worst under", "precision", "recall", "proof", *_COSTS),
                tuple(self._other(method) for method in self.methods),
            ),
        ]

    def _other(self, method: str) -> tuple[str | None, ...]:
        ran = [one for one in self.records.where(method=method) if one.values]
        counts = ("lies", "caught", "false_alarms", "unheard", "proven", "framed")
        found = Detection(**{name: sum(one[name] for one in ran) for name in counts})
        seconds = [
            [one[name] for one in ran if one[name] is not None]
            for name in ("round_seconds", "decode_seconds")
        ]
        return (
            method,
            self.worst(method),
            score(found.precision),
            score(found.recall),
            score(found.proof),
            num_bytes(self.message_bytes(method)),
            *(duration(mean(each) if each else None) for each in seconds),
        )

    def message_bytes(self, method: str) -> float | None:
        """Bytes of all messages of a round; None if no run of the method got that far."""
        ran = [one["message_bytes"] for one in self.records.where(method=method) if one.values]
        found = [one for one in ran if one is not None]
        return float(mean(found)) if found else None

    @property
    def plot(self) -> Plot:
        """The table of accuracies as a heat map."""
        grid = [[self.accuracy(one, column) for column in self.columns] for one in self.methods]
        return heat_map(
            f"Test accuracy, {self.name}",
            "In percent. Brighter is better.",
            self.methods,
            self.columns,
            [[figure.mean for figure in row] for row in grid],
            [[str(figure) for figure in row] for row in grid],
        )

    @property
    def terminal_tables(self) -> list[RichTable]:
        """A table for every few attacks: each is readable on 80 columns."""
        size = -(-len(self.columns) // -(-len(self.columns) // (_COLUMNS + 1)))
        starts = range(0, len(self.columns), size)
        tables = [self._terminal_table(slice(start, start + size)) for start in starts]
        sent = [num_bytes(self.message_bytes(method)) for method in self.methods]
        if len(set(sent)) > 1:
            tables.append(self._bytes_table(sent))
        return tables

    def _bytes_table(self, sent: Sequence[str]) -> RichTable:
        table = RichTable(
            title=f"Bytes of a round, {self.name}",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        table.add_column("method", overflow="fold", min_width=12)
        for column in ("bytes", WORST):
            table.add_column(column, justify="right")
        for method, size in zip(self.methods, sent, strict=True):
            table.add_row(Text(method), size, f"{self.accuracy(method, WORST)}")
        return table

    def _terminal_table(self, shown: slice) -> RichTable:
        table = RichTable(
            title=f"Test accuracy (%), {self.name}",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        table.add_column("method", overflow="fold", min_width=12)
        for column in self.columns[shown]:
            table.add_column(Text(column), justify="right", overflow="fold", min_width=10)
        for method in self.methods:
            texts = self.texts(method, no_star=" ")[shown]
            styled = (Text(one, style="bold" if one.endswith("*") else "") for one in texts)
            table.add_row(Text(method), *styled)
        return table


@dataclass(frozen=True)
class Comparison:
    """The records of a comparison, and tables of them."""

    records: Records
    """What came out, in the order of the cells."""
    cells: Sequence[Cell]
    """What was run."""

    @cached_property
    def panels(self) -> list[Panel]:
        """A table for each split of the data."""
        names = self.records.labels("split")
        return [Panel(str(name), self.records.where(split=name)) for name in names]

    @property
    def answers(self) -> list[str]:
        """A sentence per split: who had the best worst case."""
        return [panel.answer for panel in self.panels]

    def write(self, folder: Path) -> None:
        """Writes `comparison.csv`, `comparison.md` and `comparison.html`, each whole.

        Args:
            folder: where to; it is made if need be.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in (("csv", self.to_csv), ("md", self.to_markdown), ("html", self.to_html)):
            with whole(folder / f"comparison.{name}") as beside:
                beside.write_text(write(), encoding="utf-8", newline="")

    def to_csv(self) -> str:
        """One line per run, with all that is known of it."""
        lines = [
            {
                **record.labels,
                **{"status": record.status, "reason": record.reason, "seconds": record.seconds},
                "warnings": "; ".join(record.warnings),
                **{key: one for key, one in record.values.items() if not isinstance(one, list)},
                **_flat(cell.config["arguments"]),
                "identity": cell.identity,
            }
            for record, cell in zip(self.records, self.cells, strict=True)
        ]
        names = dict.fromkeys(name for line in lines for name in line)
        written = io.StringIO()
        table = csv.DictWriter(written, names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
        return written.getvalue()

    def to_markdown(self) -> str:
        """The answer, the tables, and what did not run to its end."""
        lines = ["# Comparison", "", *(f"**{one}**\n" for one in self.answers)]
        for table in self._tables:
            lines += [f"## {table.title}", "", table.caption, ""]
            lines += markdown_table(table.headers, table.rows)
        if notes := self._notes():
            lines += ["## What did not run to its end, and warnings", ""]
            lines += [*(f"- {note}" for note in notes), ""]
        facts = markdown_table(("what", "value"), list(self._facts().items()))
        return "\n".join([*lines, "## What was run", "", *facts])

    def to_html(self) -> str:
        """One page with heat maps and tables, that needs nothing else."""
        methods = count(len(self.panels[0].methods), "method")
        attacks = count(len(self.panels[0].attacks) - 1, "attack")
        return render_page(
            "phalanx.experiments",
            "comparison.html.j2",
            title=f"{methods} under {attacks}",
            kind="Phalanx comparison",
            answer=" ".join(self.answers),
            origin="",
            plots=drawn([panel.plot for panel in self.panels]),
            tables=self._tables,
            notes=self._notes(),
            facts=self._facts(),
            sources=self._sources(),
        )

    @property
    def _tables(self) -> list[Table]:
        return [table for panel in self.panels for table in panel.tables]

    def _notes(self) -> list[str]:
        """What did not run to its end and why, those alike together, then what was warned of."""
        alike: dict[tuple[Any, ...], list[Record]] = {}
        for one in self.records:
            if one.status != "finished":
                gist = "" if one.status == "stopped" else one.reason
                alike.setdefault((one["method"], one["split"], one.status, gist), []).append(one)
        notes = []
        for (method, split, status, _), found in alike.items():
            where = f"{method}, {split}"
            if status != "not applicable":
                attacks = listed([str(one) for one in Records(found).labels("attack")])
                where += f", {attacks} ({count(len(found), 'run')})"
            if status == "stopped":
                rounds = sorted({one["rounds"] or 0 for one in found})
                span = " to ".join(f"{end}" for end in dict.fromkeys((rounds[0], rounds[-1])))
                status += f" after {span} rounds"
            notes.append(f"{where}: {status}: {found[0].reason}")
        warned = [f"{one['method']}: {text}" for one in self.records for text in one.warnings]
        return notes + list(dict.fromkeys(warned))

    def _facts(self) -> dict[str, str]:
        """What all runs share."""
        first = self.cells[0].arguments  # the plain mean without an attack
        ran = [one for one in self.records if one.status != "not applicable"]
        schedules = dict.fromkeys(repr(cell.arguments.get("byzantine")) for cell in self.cells)
        return {
            "runs": f"{len(ran)}",
            "seeds": listed([str(seed) for seed in self.records.labels("seed")]),
            "workers": f"{first['num_workers']}",
            "who is Byzantine": list(schedules)[-1],
            "methods": "; ".join(dict.fromkeys(repr(_method(cell)) for cell in self.cells)),
            "data": repr(first["data"]),
            "rounds": f"{first['steps']}",
            "samples per round": f"{first['batch_size']}",
            "seconds in all runs": f"{sum(one.seconds or 0.0 for one in ran):.0f}",
        }

    def _sources(self) -> list[str]:
        """The papers of the methods and attacks, each once."""
        used = [one for cell in self.cells for one in (_method(cell), cell.arguments.get("attack"))]
        used += [cell.arguments.get("compressor") for cell in self.cells]
        kinds = dict.fromkeys(type(part) for part in used if part is not None)
        return list(dict.fromkeys(text for kind in kinds if (text := source(kind))))


def _method(cell: Cell) -> Any:
    return cell.arguments.get("code", cell.arguments.get("rule"))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments, one column each."""
    return {
        f"config.{name}": value if isinstance(value, int | str) else json.dumps(value)
        for name, value in config.items()
        if value is not None
    }
