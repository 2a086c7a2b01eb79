"""Texts and their classes from a CSV file, as sequences of word tokens."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phalanx.checks import require_at_least
from phalanx.data.arrays import check_fraction, in_memory, number_labels
from phalanx.data.base import DataSource, Splits
from phalanx.data.tables import MISSING, read_labels, read_table, train_and_test
from phalanx.data.text import words


@dataclass(frozen=True)
class LabelledTexts(DataSource):
    r"""A CSV file in UTF-8 with a header row, plain or gzip-compressed (`.gz`), of texts.

    A text is the numbers of its first `length` words, in order; 0 fills what is missing at the end.
    Letters are made small, and what is neither letter nor digit only separates words. The most
    frequent words of the training rows are numbered from 2 on; 1 stands for all others. With
    `hashed` the number of a word follows from the word alone, so that there is no vocabulary to fit
    or to send; some words then share one. For models such as `TextClassifier`, whose `vocabulary`
    must be at least as large. `CsvFile` counts words instead, without their order.

    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "tiny.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("label,text\n" + "good,A good film!\nbad,a bad film\n" * 5)
    >>> splits = LabelledTexts(path, length=5, vocabulary=4).load()
    >>> splits.input_shape, splits.num_classes, len(splits.train), len(splits.test)
    ((5,), 2, 8, 2)
    >>> splits.train[0]  # "a" and "film" are known
    (tensor([2, 1, 3, 0, 0]), tensor(1))
    >>> folder.cleanup()
    """

    path: str | Path = "data.csv"
    """The file."""

    text: list[str] = field(default_factory=lambda: ["text"])
    """Names of the columns that hold the text, one after the other."""

    label: str = "label"
    """Name of the column that holds the class."""

    split: str | None = None
    """Name of the column that says `train` or `test` (rows that say anything else are left out);
    a column called `split`, if there is one, where not given."""

    length: int = 32
    """Words of a text that are taken."""

    vocabulary: int = 4096
    """Numbers in all, those of padding and of unknown words among them."""

    hashed: bool = False
    """Whether words are numbered by their hashes."""

    test_fraction: float = 0.2
    """Share of the rows that is held out where there is no split column."""

    missing: list[str] = field(default_factory=lambda: list(MISSING))
    """Cells that are no label: a row that has one is refused."""

    max_bytes: int = 2**31
    """Longest text that is read, in bytes, after decompression."""

    def __post_init__(self) -> None:
        require_at_least(1, length=self.length, max_bytes=self.max_bytes)
        require_at_least(3, vocabulary=self.vocabulary)
        if not self.text:
            raise ValueError("text must name at least 1 column, got none")
        check_fraction(self.test_fraction)

    def load(self) -> Splits:
        """The training and test sets of the file.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if it is no such table, or a column or a label is missing.
        """
        named = [self.label, *self.text]
        table = read_table(self.path, named, self.split, self.max_bytes)
        labels = read_labels(table, self.label, self.missing)
        train, test = train_and_test(table, self.split, labels, self.test_fraction)
        columns = [table.columns[name] for name in self.text]
        documents = [words(" ".join(cells)) for cells in zip(*columns, strict=True)]
        number = self._hash if self.hashed else self._counted(documents[row] for row in train)
        tokens = np.zeros((len(documents), self.length), dtype=np.int64)
        for row, document in zip(tokens, documents, strict=True):
            taken = document[: self.length]
            row[: len(taken)] = [number(word) for word in taken]
        y_train, y_test, num_classes = number_labels(labels[train], labels[test], str(self.path))
        return in_memory(
            (tokens[train], y_train), (tokens[test], y_test), num_classes, str(self.path)
        )

    def _counted(self, documents: Iterable[list[str]]) -> Callable[[str], int]:
        """Numbers by how frequent a word is; among equally frequent ones, by the alphabet."""
        counts = Counter(word for document in documents for word in document)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        places = {word: place for place, word in enumerate(ranked[: self.vocabulary - 2], start=2)}
        return lambda word: places.get(word, 1)

    def _hash(self, word: str) -> int:
        return 1 + zlib.crc32(word.encode()) % (self.vocabulary - 1)
