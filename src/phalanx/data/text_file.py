"""Character sequences from one long text, for next-character prediction."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phalanx.checks import require_at_least
from phalanx.data.arrays import Array, check_fraction, in_memory
from phalanx.data.base import DataSource, Splits
from phalanx.data.text import read_text


@dataclass(frozen=True)
class TextFile(DataSource):
    """A text in UTF-8, plain or gzip-compressed (`.gz`), in sequences of characters.

    The sequences lie one after the other and share no character, and are numbered as they stand in
    the text: a number is the same sequence in every run. Targets are the characters that follow, at
    each place. The end of the text is for testing; what does not fill a sequence is left out.

    Characters are numbered in sorted order from 1 on; 0 stands for those that the training part
    does not have. For language models such as `GPT`, whose classes they are.

    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "tiny.txt")
    >>> with open(path, "w") as file:
    ...     _ = file.write("abc" * 10)
    >>> splits = TextFile(path, length=4, test_fraction=0.5).load()
    >>> splits.input_shape, splits.num_classes, len(splits.train), len(splits.test)
    ((4,), 4, 3, 3)
    >>> splits.train[0]
    (tensor([1, 2, 3, 1]), tensor([2, 3, 1, 2]))
    >>> folder.cleanup()
    """

    path: str | Path = "data.txt"
    """The file."""

    length: int = 64
    """Characters in a sequence."""

    test_fraction: float = 0.1
    """Share of the characters, at the end of the text, that is for testing."""

    max_bytes: int = 2**31
    """Longest text that is read, in bytes, after decompression."""

    def __post_init__(self) -> None:
        require_at_least(1, length=self.length, max_bytes=self.max_bytes)
        check_fraction(self.test_fraction)

    def load(self) -> Splits:
        """The training and test sets of the file.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if it is damaged, no text, too long, or too short for a sequence in either
                part.
        """
        text = read_text(self.path, "a text", self.max_bytes)
        characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        parts = np.split(characters, [round((1 - self.test_fraction) * len(characters))])
        if min(map(len, parts)) <= self.length:
            raise ValueError(
                f"{self.path} must hold more than {self.length} characters for training and for "
                f"testing, got {len(parts[0])} and {len(parts[1])}"
            )
        known = np.unique(parts[0])
        train, test = (self._sequences(_numbered(part, known)) for part in parts)
        return in_memory(train, test, len(known) + 1, str(self.path))

    def _sequences(self, tokens: Array) -> tuple[Array, Array]:
        """Inputs and targets, `(sequences, length)` each."""
        whole = (len(tokens) - 1) // self.length * self.length
        shape = (-1, self.length)
        return tokens[:whole].reshape(shape), tokens[1 : whole + 1].reshape(shape)


def _numbered(characters: Array, known: Array) -> Array:
    """Places among the known characters, from 1 on; 0 for others."""
    places = np.searchsorted(known, characters).clip(max=len(known) - 1)
    return np.where(known[places] == characters, places + 1, 0)
