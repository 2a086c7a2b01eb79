"""Text files, words and bags of words."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from phalanx.data.arrays import Array


@contextmanager
def open_text(path: str | Path, kind: str) -> Iterator[TextIO]:
    """Opens a file in UTF-8, plain or gzip-compressed (`.gz`), with line ends as they are.

    Args:
        path: the file.
        kind: what it must be, for messages.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it cannot be read as such, then or while it is open.
    """
    opened = gzip.open if str(path).endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise ValueError(f"{path} must be {kind} in UTF-8: {error}") from error


def words(text: str) -> list[str]:
    """The words of a text, in small letters: letters, digits and underscores in a row.

    >>> words("What's new?")
    ['what', 's', 'new']
    """
    return re.findall(r"\w+", text.lower())


def hash_words(documents: Iterable[list[str]], num_features: int) -> Array:
    """Bags of words, `(documents, num_features)` float32, rows of Euclidean norm 1 (or 0).

    The place of a word is its hash, so that there is no vocabulary to fit or to send.

    Args:
        documents: the words of each document.
        num_features: places; more of them make fewer collisions.
    """
    # Imported where it is used: it takes as long to import as torch.
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(n_features=num_features, analyzer=list, dtype=np.float32)
    bags: Array = hashing.transform(documents).toarray()
    return bags
