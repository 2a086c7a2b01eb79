"""Tables and short texts from a CSV file."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phalanx.checks import require_at_least
from phalanx.data.arrays import Array, check_fraction, in_memory, number_labels, standardise
from phalanx.data.base import DataSource, Splits
from phalanx.data.tables import (
    MISSING,
    Table,
    read_labels,
    read_numbers,
    read_table,
    train_and_test,
)
from phalanx.data.text import hash_words, words


@dataclass(frozen=True)
class CsvFile(DataSource):
    r"""A CSV file in UTF-8 with a header row, plain or gzip-compressed (`.gz`).

    Each column but the label becomes features by its kind:

    - all cells are finite numbers or `missing`: standardised by the training rows; a missing cell
      is the mean;
    - few distinct values: one-hot over the values of the training rows; a value new in testing is
      all zeros;
    - else text: its words are hashed into one bag of words of `num_features` places for the row.
      The column's name is part of the word. Columns named in `categorical` that have too many
      values for one-hot are hashed whole into the same bag.

    Labels are told apart by their text: 007 and 7 are two classes. Whole numbers are numbered by
    value, text by the alphabet. Blank lines and a byte order mark are skipped.

    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "tiny.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("size,colour,label\n" + "1,red,a\n3,blue,b\n" * 5)
    >>> splits = CsvFile(path).load()
    >>> splits.input_shape, splits.num_classes, len(splits.train), len(splits.test)
    ((3,), 2, 8, 2)
    >>> folder.cleanup()
    """

    path: str | Path = "data.csv"
    """The file."""

    label: str = "label"
    """Name of the column that holds the class."""

    split: str | None = None
    """Name of the column that says `train` or `test` (rows that say anything else are left out);
    a column called `split`, if there is one, where not given."""

    ignore: list[str] = field(default_factory=list)
    """Columns to leave out, such as a second label."""

    categorical: list[str] = field(default_factory=list)
    """Columns to take as categories even if they look like numbers or have many values."""

    text: list[str] = field(default_factory=list)
    """Columns to take as text even if they look otherwise."""

    max_categories: int = 100
    """A column of more distinct values than this is not one-hot encoded."""

    num_features: int = 2048
    """Places of the hashed bag of words."""

    test_fraction: float = 0.2
    """Share of the rows that is held out where there is no split column."""

    missing: list[str] = field(default_factory=lambda: list(MISSING))
    """Cells that are no label, so that their row is refused, and no number: in a column of numbers
    they count as the mean. In other columns they are text like any other."""

    max_bytes: int = 2**31
    """Longest text that is read, in bytes, after decompression."""

    def __post_init__(self) -> None:
        require_at_least(
            1,
            max_categories=self.max_categories,
            num_features=self.num_features,
            max_bytes=self.max_bytes,
        )
        check_fraction(self.test_fraction)

    def load(self) -> Splits:
        """The training and test sets of the file.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if it is no such table, a column or a label is missing, or a number is not
                finite; the message names line and column.
        """
        named = [self.label, *self.ignore, *self.categorical, *self.text]
        table = read_table(self.path, named, self.split, self.max_bytes)
        labels = read_labels(table, self.label, self.missing)
        train, test = train_and_test(table, self.split, labels, self.test_fraction)
        left_out = {self.label, self.split or "split", *self.ignore}
        blocks, bags = [], {}
        for name, cells in table.columns.items():
            if name in left_out:
                continue
            block = self._block(table, name, train)
            if block is None:
                bags[name] = cells
            else:
                blocks.append(block)
        if bags:
            blocks.append(hash_words(self._words(bags), self.num_features))
        if not blocks:
            raise ValueError(f"{self.path} must have a column besides {self.label}, got none")
        inputs = np.concatenate(blocks, axis=1)
        y_train, y_test, num_classes = number_labels(labels[train], labels[test], str(self.path))
        return in_memory(
            (inputs[train], y_train), (inputs[test], y_test), num_classes, str(self.path)
        )

    def _block(self, table: Table, name: str, train: Array) -> Array | None:
        """The features of one column, or None if it belongs into the bag of words."""
        if name in self.text:
            return None
        if name not in self.categorical:
            numbers = read_numbers(table, name, self.missing)
            if numbers is not None:
                return _standardised(numbers, train)
        cells = table.columns[name]
        values = np.unique(cells[train])
        most = self.max_categories
        if name not in self.categorical:
            most = min(most, len(train) // 2)  # values that hardly repeat are no categories
        if len(values) > most:
            return None
        one_hot: Array = (cells[:, None] == values).astype(np.float32)
        return one_hot

    def _words(self, bags: dict[str, Array]) -> list[list[str]]:
        documents: list[list[str]] = [[] for _ in next(iter(bags.values()))]
        for name, cells in bags.items():
            whole = name in self.categorical and name not in self.text
            for document, cell in zip(documents, cells, strict=True):
                found = [cell] if whole else words(cell)
                document.extend(f"{name}={word}" for word in found)
        return documents


def _standardised(numbers: Array, train: Array) -> Array:
    """Mean 0 and standard deviation 1 over the known training rows; 0 where a cell is missing."""
    known = np.flatnonzero(~np.isnan(numbers))
    column = np.zeros((len(numbers), 1), np.float32)
    of_training = numbers[np.intersect1d(known, train)]
    if len(of_training):
        column[known] = standardise(of_training[:, None], numbers[known, None])[1]
    return column
