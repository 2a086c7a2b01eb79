"""Labelled data by path, for the commands that look at data before training."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phalanx.data import CsvFile, DataSource, ImageFolder, NpzFile
from phalanx.data.arrays import Array, number_labels
from phalanx.data.tables import MISSING, read_labels, read_table, train_and_test


@dataclass(frozen=True)
class Labelled:
    """Training and test rows with their classes."""

    train: Array
    """Inputs `(n, ...)`, or texts `(n,)`."""

    train_labels: Array
    """`(n,)`."""

    test: Array
    """Inputs `(m, ...)`, or texts `(m,)`."""

    test_labels: Array
    """`(m,)`."""

    num_classes: int
    """How many classes there are."""


def read_labelled(
    path: Path, label: str, text: list[str], image_size: int | None, test_fraction: float
) -> Labelled:
    """The data at a path: a `.csv` or `.csv.gz` file, an `.npz` file, or a folder of images.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is none of these, or the data are not as `phalanx.data` wants them.
    """
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if text:
        if kind != "csv":
            raise ValueError(f"text must go with a .csv file, got {path}")
        return _texts(path, label, text, test_fraction)
    source: DataSource
    if path.is_dir():
        source = ImageFolder(path, image_size, test_fraction)
    elif kind == "npz":
        source = NpzFile(path, test_fraction=test_fraction)
    elif kind == "csv":
        source = CsvFile(path, label, test_fraction=test_fraction)
    else:
        raise ValueError(f"data must be a .csv or .npz file or a folder of images, got {path}")
    splits = source.load()
    (train, y_train), (test, y_test) = (
        [one.numpy() for one in getattr(part, "tensors")]  # noqa: B009 - of a TensorDataset
        for part in (splits.train, splits.test)
    )
    return Labelled(train, y_train, test, y_test, splits.num_classes)


def by_path(name: str) -> Any:
    """What an import path leads to, such as `mylab.embeddings.Mine`; a class is called.

    Raises:
        ValueError: if there is nothing.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name} must be an import path such as mylab.Mine: {error}") from error
    return found() if isinstance(found, type) else found


def _texts(path: Path, label: str, text: list[str], test_fraction: float) -> Labelled:
    table = read_table(path, [label, *text], None, 2**31)
    labels = read_labels(table, label, MISSING)
    train, test = train_and_test(table, None, labels, test_fraction)
    cells = zip(*(table.columns[name] for name in text), strict=True)
    texts = np.array([" ".join(one) for one in cells])
    y_train, y_test, num_classes = number_labels(labels[train], labels[test], str(path))
    return Labelled(texts[train], y_train, texts[test], y_test, num_classes)
