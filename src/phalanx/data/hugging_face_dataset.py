"""Data sets of the Hugging Face hub, by name, and files that its library reads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from phalanx.checks import require_at_least
from phalanx.data.arrays import (
    Array,
    channels_first,
    check_fraction,
    hold_out,
    in_memory,
    number_labels,
    standardise,
)
from phalanx.data.base import DataSource, Splits
from phalanx.data.images import check_size, naming, stack_images
from phalanx.data.text import hash_words, words


@dataclass(frozen=True)
class HuggingFaceDataset(DataSource):
    """A data set that `datasets.load_dataset` finds: one input column and one label column.

    Needs `pip install 'phalanx[huggingface]'`. Inputs are images, texts (hashed bags of words), or
    numbers and lists of numbers of one length; images and numbers are standardised as in `NpzFile`.
    The whole set is held in memory: take a part with `train_split="train[:5000]"`. Kinds of columns
    are those that `datasets` infers: its csv builder takes the labels 007 and 7 for one number,
    which `CsvFile` does not.

    >>> HuggingFaceDataset("ylecun/mnist", train_split="train[:1000]").train_split
    'train[:1000]'
    """

    name: str = "ylecun/mnist"
    """Name on the hub, a folder, or a builder such as csv or parquet."""

    config: str | None = None
    """The set's configuration, where it has several."""

    data_files: dict[str, str] | None = None
    """Files of a builder, by split, such as `{"train": "a.csv", "test": "b.csv"}`."""

    input: str = "image"
    """The column with the inputs."""

    label: str = "label"
    """The column with the classes: whole numbers or text."""

    train_split: str = "train"
    """The split to train on; slices such as `train[:1000]` are understood."""

    test_split: str | None = "test"
    """The split to test on; None holds out a share of the training rows."""

    image_size: int | None = None
    """Height and width to which images are resized; needed where their sizes differ."""

    num_features: int = 2048
    """Places of the hashed bag of words, for texts."""

    test_fraction: float = 0.2
    """Share of the training rows that is held out where `test_split` is None."""

    max_bytes: int = 2**31
    """Largest size of the pixels of a split, in bytes."""

    def __post_init__(self) -> None:
        check_size(self.image_size)
        check_fraction(self.test_fraction)
        require_at_least(1, num_features=self.num_features, max_bytes=self.max_bytes)

    def load(self) -> Splits:
        """The training and test sets, after a download where it is needed.

        Raises:
            ValueError: if `datasets` is not installed, a split or column is missing, or the inputs
                are of none of the kinds above.
        """
        x_train, y_train = self._part(self.train_split)
        if self.test_split is None:
            train, test = hold_out(y_train, self.test_fraction, self.name)
            x_train, y_train, x_test, y_test = (
                x_train[train],
                y_train[train],
                x_train[test],
                y_train[test],
            )
        else:
            x_test, y_test = self._part(self.test_split)
        y_train, y_test, num_classes = number_labels(y_train, y_test, self.name)
        if x_train.dtype != np.float32:  # bags of words are left as they are
            x_train, x_test = standardise(x_train, x_test)
        return in_memory((x_train, y_train), (x_test, y_test), num_classes, self.name)

    def _part(self, split: str) -> tuple[Array, Array]:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                "HuggingFaceDataset needs datasets: pip install 'phalanx[huggingface]'"
            ) from error
        rows = datasets.load_dataset(
            self.name, self.config, data_files=self.data_files, split=split
        )
        missing = [name for name in (self.input, self.label) if name not in rows.column_names]
        if missing:
            raise ValueError(
                f"{self.name} must have columns {', '.join(missing)}, "
                f"got {', '.join(rows.column_names)}"
            )
        inputs, labels = [], []
        with naming(f"{self.name}: column {self.input}"):
            for row in rows.select_columns([self.input, self.label]):
                inputs.append(row[self.input])
                labels.append(row[self.label])
        kind = object if all(isinstance(label, str) for label in labels) else None
        return self._array(inputs), np.array(labels, dtype=kind)

    def _array(self, inputs: list[Any]) -> Array:
        if all(isinstance(each, Image.Image) for each in inputs):
            images = stack_images(inputs, self.name, self.image_size, max_bytes=self.max_bytes)
            return channels_first(images, self.name)
        if all(isinstance(each, str) for each in inputs):
            return hash_words(map(words, inputs), self.num_features)
        try:
            table = np.asarray(inputs, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name}: {self.input} must hold images, texts, or lists of numbers of one "
                f"length: {error}"
            ) from error
        return channels_first(table.reshape(-1, 1) if table.ndim == 1 else table, self.name)
