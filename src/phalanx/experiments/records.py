"""Records of an experiment in long form, and pivot tables, means and spreads of them."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from phalanx.reporting import Table

Label = str | int | float | None
"""What an axis calls one of its values."""
Key = Label | tuple[Label, ...]
"""What stands before a row or over a column: the label of one axis, or those of several."""
Status = Literal["finished", "stopped", "failed", "not applicable"]


@dataclass(frozen=True)
class Record:
    """Record of a cell: values if it ran, a reason if it did not run to its end."""

    labels: Mapping[str, Label]
    """Where it stands: a label for each axis."""
    status: Status = "finished"
    """`"stopped"` if it could not go on, as when more messages were unusable than a rule tolerates,
    `"failed"` on any other error, `"not applicable"` if it was skipped, so that it never ran."""
    reason: str | None = None
    """Why it did not run to its end."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: numbers, text, lists of numbers; None where nothing could be measured."""
    seconds: float | None = None
    """Seconds in all."""
    warnings: Sequence[str] = ()
    """What was warned of, each once."""
    traceback: str | None = None
    """Where the error was raised, if it failed."""

    def __str__(self) -> str:
        return place(self.labels)

    def __getitem__(self, name: str) -> Any:
        """A label or a measured value; None if the record has none of that name."""
        return self.labels[name] if name in self.labels else self.values.get(name)


def place(labels: Mapping[str, Label]) -> str:
    """Labels in words: text as it is, numbers after the names of their axes.

    >>> place({"rule": "Krum", "seed": 1})
    'Krum, seed 1'
    """
    return ", ".join(
        one if isinstance(one, str) else f"{axis} {one}" for axis, one in labels.items()
    )


Value = str | Callable[[Record], Any]
"""What is read from a record: a name, or a function of the record; None is not measured."""


def mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of lists of numbers entry by entry.

    >>> mean([1.0, 2.0]), mean([[1.0, 2.0], [3.0, 4.0]])
    (1.5, [2.0, 3.0])
    """
    if isinstance(values[0], Sequence) and not isinstance(values[0], str):
        return [mean(column) for column in zip(*values, strict=True)]
    return statistics.fmean(values)


def spread(values: Sequence[float | int]) -> float | None:
    """Standard deviation (n - 1); None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


class Records(tuple[Record, ...]):
    """Records of an experiment, in the order of its cells.

    >>> runs = [Record({"rule": "Krum", "seed": n}, values={"accuracy": 0.5 + n}) for n in (0, 1)]
    >>> Records(runs).mean("accuracy", rule="Krum"), Records(runs).labels("seed")
    (1.0, [0, 1])
    """

    __slots__ = ()

    def where(self, **labels: Any) -> "Records":
        """The records with these labels; a list, tuple or set stands for any of its labels.

        Raises:
            ValueError: if no record has them.
        """
        allowed = {
            name: wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
            for name, wanted in labels.items()
        }
        found = Records(
            one
            for one in self
            if all(
                name in one.labels and one.labels[name] in any_ for name, any_ in allowed.items()
            )
        )
        if not found:
            raise ValueError(f"labels must be those of a record, got {labels}, which none has")
        return found

    def labels(self, axis: str) -> list[Label]:
        """The labels of an axis, each once, in order."""
        return list(dict.fromkeys(one.labels[axis] for one in self if axis in one.labels))

    def reduce(self, value: Value, by: Callable[[Sequence[Any]], Any], **labels: Any) -> Any:
        """A figure of a value over all records with these labels.

        Returns:
            What `by` makes of the values; None if it was not measured in every record.

        Raises:
            ValueError: if no record has the labels, or none that ran has the value.
        """
        found = self.where(**labels)
        if isinstance(value, str):
            ran = [one for one in found if one.values]
            if ran and not any(value in one.values or value in one.labels for one in ran):
                names = sorted({name for one in ran for name in one.values})
                raise ValueError(f"value must be one of {', '.join(names)}, got {value!r}")
        values = [one[value] if isinstance(value, str) else value(one) for one in found]
        return None if any(one is None for one in values) else by(values)

    def mean(self, value: Value, **labels: Any) -> Any:
        """The mean of a value over all records with these labels; see `reduce`."""
        return self.reduce(value, mean, **labels)

    def spread(self, value: Value, **labels: Any) -> float | None:
        """The standard deviation of a value over all records with these labels; see `reduce`."""
        found: float | None = self.reduce(value, spread, **labels)
        return found

    def table(
        self, title: str, caption: str, columns: Sequence[str] | Mapping[str, Value]
    ) -> Table:
        """A table with a row for each record.

        >>> runs = Records([Record({"rule": "Krum"}, values={"accuracy": 0.5})])
        >>> runs.table("Runs", "Of rules.", ["rule", "accuracy"]).rows
        (('Krum', 0.5),)

        Args:
            title: what it shows.
            caption: how to read it.
            columns: labels and values by name, or what is read from a record by header.
        """
        named: Mapping[str, Value] = (
            columns if isinstance(columns, Mapping) else {name: name for name in columns}
        )
        rows = (
            tuple(one[read] if isinstance(read, str) else read(one) for read in named.values())
            for one in self
        )
        return Table(title, caption, tuple(named), tuple(rows))


@dataclass(frozen=True)
class Pivot:
    """Pivot table: figures by row and column."""

    rows: Sequence[Key]
    """Keys of the rows, in order."""
    columns: Sequence[Key]
    """Keys of the columns, in order."""
    figures: Mapping[tuple[Key, Key], Any]
    """By row and column; pairs of which there is no record are left out."""

    def __getitem__(self, place: tuple[Key, Key]) -> Any:
        """The figure of a row and a column; None if there is none."""
        return self.figures.get(place)

    def row(self, row: Key) -> list[Any]:
        """The figures of a row, in the order of the columns."""
        return [self[row, column] for column in self.columns]

    def column(self, column: Key) -> list[Any]:
        """The figures of a column, in the order of the rows."""
        return [self[row, column] for row in self.rows]

    def table(
        self,
        title: str,
        caption: str,
        corner: str | Sequence[str] = "",
        show: Callable[[Any], Any] = lambda x: x,
    ) -> Table:
        """The figures as a table of a report.

        Args:
            title: what it shows.
            caption: how to read it.
            corner: what the rows are; a list gives each of their axes a column of its own.
            show: how a figure is written; numbers have four digits anyway.
        """
        corners = (corner,) if isinstance(corner, str) else tuple(corner)
        rows = tuple(
            (
                *(row if isinstance(row, tuple) and len(corners) > 1 else (_text(row),)),
                *(None if one is None else show(one) for one in self.row(row)),
            )
            for row in self.rows
        )
        return Table(title, caption, (*corners, *map(_text, self.columns)), rows)


def pivot(
    records: Records,
    rows: str | Sequence[str],
    columns: str | Sequence[str] | None,
    value: Value | Mapping[str, Value],
    reduce: Callable[[Sequence[Any]], Any] = mean,
) -> Pivot:
    """Figures by the labels of some axes, over all other axes.

    >>> records = Records(
    ...     Record({"rule": rule, "attack": attack, "seed": seed}, values={"accuracy": 0.5 + seed})
    ...     for rule in ("Mean", "Krum") for attack in ("none", "ALIE") for seed in (0, 1)
    ... )
    >>> pivot(records, "rule", "attack", "accuracy")["Krum", "ALIE"]
    1.0
    >>> pivot(records, "rule", None, {"best": "accuracy"}, max).row("Mean")
    [1.5]

    Args:
        records: in long form.
        rows: the axis, or the axes, of the rows; records without them are left out.
        columns: likewise; None for a column for each value of a mapping.
        value: what is shown. A mapping from headers to values with `columns` None.
        reduce: what becomes of the values of the records that fall on one place, the seeds among
            them; a place where one of them is None has no figure.
    """
    by_header = value if isinstance(value, Mapping) else {"value": value}
    across = () if columns is None else (columns,) if isinstance(columns, str) else tuple(columns)
    down = (rows,) if isinstance(rows, str) else tuple(rows)
    places: dict[tuple[Key, Key], list[Record]] = {}
    for one in records:
        if all(axis in one.labels for axis in (*down, *across)):
            places.setdefault((_key(one, down), _key(one, across)), []).append(one)
    figures = {
        (row, header if columns is None else column): Records(found).reduce(read, reduce)
        for ((row, column), found), (header, read) in product(places.items(), by_header.items())
    }
    keys = list(figures)
    return Pivot(
        tuple(dict.fromkeys(row for row, _ in keys)),
        tuple(dict.fromkeys(column for _, column in keys)),
        figures,
    )


def plain(value: Any) -> Any:
    """A measured value as JSON holds it: numbers that are not finite become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def _key(record: Record, axes: tuple[str, ...]) -> Key:
    labels = tuple(record.labels[axis] for axis in axes)
    return labels[0] if len(labels) == 1 else labels


def _text(key: Key) -> str:
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)
