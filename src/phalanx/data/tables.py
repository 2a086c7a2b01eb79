"""CSV tables: columns, splits and classes."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from phalanx.data.arrays import Array, hold_out
from phalanx.data.text import open_text


def read_table(path: str | Path, named: Iterable[str]) -> dict[str, Array]:
    """The columns of a CSV file with a header row, as arrays of text.

    Args:
        path: the file, in UTF-8, plain or gzip-compressed (`.gz`).
        named: columns that must be there.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is no such table, or a column is missing.
    """
    with open_text(path, "a CSV file") as file:
        header, *rows = csv.reader(file)
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}: row {line} must have {len(header)} cells, got {len(row)}")
    missing = [name for name in named if name not in header]
    if missing:
        raise ValueError(f"{path} must have columns {', '.join(missing)}, got {', '.join(header)}")
    return dict(zip(header, np.array(rows, dtype=object).reshape(-1, len(header)).T, strict=True))


def train_and_test(
    table: dict[str, Array], split: str | None, labels: Array, fraction: float
) -> tuple[Array, Array]:
    """Row numbers of a training and a test set.

    Args:
        table: by column.
        split: the column that says `train` or `test`, rows that say anything else being left out; a
            column called `split`, if there is one, where it is None.
        labels: the class of each row.
        fraction: share of the rows that is held out where there is no such column.
    """
    part = table.get(split or "split")
    if part is None:
        return hold_out(labels, fraction)
    return np.flatnonzero(part == "train"), np.flatnonzero(part == "test")


def read_numbers(cells: Array) -> Array | None:
    """A column as float64 with NaN for what is missing; None if it is not numeric."""
    try:
        return np.array([float(cell) if cell else np.nan for cell in cells])
    except ValueError:
        return None


def read_labels(cells: Array) -> Array:
    """A column of classes: whole numbers if all are, else text."""
    numbers = read_numbers(cells)
    if numbers is not None and (numbers == np.round(numbers)).all():
        return numbers.astype(np.int64)
    return cells.astype(str)
