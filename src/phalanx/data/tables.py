"""CSV tables: columns, splits and classes."""

import csv
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phalanx.data.arrays import Array, hold_out
from phalanx.data.text import read_text

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""Cells that stand for a missing value, unless the caller says otherwise."""


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file as they are written, by column."""

    path: str | Path
    """The file, for messages."""

    columns: dict[str, Array]
    """Text, one array a column."""

    lines: Array
    """The line of the file on which each row ends."""

    def refuse(self, name: str, wrong: Sequence[int], rule: str) -> None:
        """Raises a `ValueError` about the rows of a column that break a rule, if there are any."""
        if wrong:
            first = wrong[0]
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise ValueError(
                f"{self.path}: column {name} must {rule}, "
                f"got {self.columns[name][first]!r} in line {self.lines[first]}{more}"
            )


def read_table(path: str | Path, named: Iterable[str], split: str | None, max_bytes: int) -> Table:
    """The columns of a CSV file with a header row, as text; blank lines are no rows.

    Args:
        path: the file, in UTF-8 with or without a byte order mark, plain or gzip-compressed.
        named: columns that must be there.
        split: the column that says `train` or `test`; rows that say anything else are left out. A
            column called `split`, if there is one, where it is None.
        max_bytes: how long the text may be at most.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is no such table; the message names the line or the column.
    """
    reader = csv.reader(
        io.StringIO(read_text(path, "a CSV file", max_bytes), newline=""), strict=True
    )
    rows, lines = [], []
    try:
        for row in filter(None, reader):
            rows.append(row)
            lines.append(reader.line_num)
            if len(row) != len(rows[0]):
                raise ValueError(
                    f"{path}: line {reader.line_num} must have {len(rows[0])} cells, got {len(row)}"
                )
    except csv.Error as error:
        raise ValueError(f"{path} must be a CSV file: line {reader.line_num}: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{path} must be a CSV file: a header and rows, got {len(rows)} lines")
    header, named = rows[0], [*named, *([split] if split else [])]
    _check_header(path, header, named)
    cells = np.array(rows[1:], dtype=object).reshape(-1, len(header))
    kept = np.ones(len(cells), dtype=bool)
    if (split or "split") in header:
        kept = np.isin(cells[:, header.index(split or "split")], ["train", "test"])
    columns = dict(zip(header, cells[kept].T, strict=True))
    return Table(path, columns, np.array(lines[1:])[kept])


def train_and_test(
    table: Table, split: str | None, labels: Array, fraction: float
) -> tuple[Array, Array]:
    """Row numbers of a training and a test set.

    Args:
        table: its rows.
        split: the column that says `train` or `test`; a column called `split`, if there is one,
            where it is None.
        labels: the class of each row.
        fraction: share of the rows that is held out where there is no such column.
    """
    part = table.columns.get(split or "split")
    if part is None:
        return hold_out(labels, fraction, str(table.path))
    return np.flatnonzero(part == "train"), np.flatnonzero(part == "test")


def read_numbers(table: Table, name: str, missing: Collection[str]) -> Array | None:
    """A column as float64 with NaN for what is missing; None if it is not numeric.

    Raises:
        ValueError: if all of its cells are numbers, but some are infinite or NaN.
    """
    none = frozenset(missing)
    try:
        numbers = np.array(
            [math.nan if cell.strip() in none else _number(cell) for cell in table.columns[name]]
        )
    except ValueError:
        return None
    wrong = np.flatnonzero(np.isinf(numbers)).tolist()
    table.refuse(name, wrong, "hold finite numbers, or be named in ignore, categorical or text")
    return numbers


def read_labels(table: Table, name: str, missing: Collection[str]) -> Array:
    """A column of classes, told apart by their text: 007, 7 and 7.0 are three.

    They are int64, so that 10 comes after 9, if all of them are whole numbers of at most 18 digits
    without leading zeros; else text.

    Raises:
        ValueError: if a label is missing, is infinite or NaN among numbers, or differs from another
            one only in the spaces around it or in how its characters are composed.
    """
    cells = table.columns[name]
    wrong = [row for row, cell in enumerate(cells) if cell.strip() in missing]
    table.refuse(name, wrong, f"have a label in every row (missing={list(missing)} are none)")
    labels = sorted(set(cells))
    finite = {label: math.isfinite(_number(label)) for label in labels if _is_number(label)}
    if any(finite.values()):
        wrong = [row for row, cell in enumerate(cells) if not finite.get(cell, True)]
        table.refuse(name, wrong, "hold finite numbers where some are numbers")
    plain = {label: unicodedata.normalize("NFC", label.strip()) for label in labels}
    twice = {one for one, count in Counter(plain.values()).items() if count > 1}
    wrong = [row for row, cell in enumerate(cells) if plain[cell] in twice and plain[cell] != cell]
    table.refuse(name, wrong, "hold labels that differ in more than spaces or composed characters")
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", label) for label in labels):
        return cells.astype(np.int64)
    return cells


def _number(cell: str) -> float:
    """The number that a cell shows, infinity for NaN.

    Raises:
        ValueError: if it shows none; Python's own underscores between digits are none.
    """
    if "_" in cell:
        raise ValueError(f"{cell!r} is no number")
    value = float(cell)
    return math.inf if math.isnan(value) else value


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _check_header(path: str | Path, header: list[str], named: list[str]) -> None:
    missing = [name for name in named if name not in header]
    if missing:
        raise ValueError(f"{path} must have columns {', '.join(missing)}, got {', '.join(header)}")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ValueError(
            f"{path} must have columns of different names, got {', '.join(twice)} twice"
        )
    if "" in header and "" not in named:
        raise ValueError(
            f"{path} must have a name for every column, got none for column "
            f"{header.index('') + 1} of {len(header)}; ignore=[''] leaves it out"
        )
