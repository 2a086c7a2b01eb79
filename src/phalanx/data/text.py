"""Text files, words and bags of words."""

import gzip
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from phalanx.data.arrays import Array


def read_text(path: str | Path, kind: str, max_bytes: int) -> str:
    """The characters of a file in UTF-8, plain or gzip-compressed (`.gz`), line ends as they are.

    A byte order mark at the start is no part of the text.

    Args:
        path: the file.
        kind: what it must be, for messages.
        max_bytes: how long the text may be at most; no more is decompressed.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged, longer, or no text.
    """
    opened = gzip.open if str(path).endswith(".gz") else open
    content = bytearray()
    try:
        with opened(path, "rb") as file:
            while len(content) <= max_bytes and (chunk := file.read(2**20)):
                content += chunk
        text = content.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be {kind} in UTF-8: {error}") from error
    if len(content) > max_bytes:
        raise ValueError(f"{path} must hold at most max_bytes={max_bytes} bytes, got more")
    if "\0" in text:
        raise ValueError(f"{path} must be {kind} in UTF-8: it has NUL at {text.index(chr(0))}")
    return text


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
