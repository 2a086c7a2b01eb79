"""Images or tables from a NumPy archive."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.data.arrays import (
    Array,
    channels_first,
    check_fraction,
    check_samples,
    hold_out,
    in_memory,
    number_labels,
    standardise,
    take,
)
from phalanx.data.base import DataSource, Splits
from phalanx.data.npz_members import read_npz


@dataclass(frozen=True)
class NpzFile(DataSource):
    """An `.npz` file with `x_train`, `y_train` and, if there are any, `x_test`, `y_test`.

    Inputs are images `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)`, or tables `(n, features)`, of
    any numeric dtype; each channel or column is standardised with its mean and standard deviation
    in the training set. Labels are whole numbers or text, numbered in sorted order. Without test
    arrays a fixed, stratified share of the training rows is held out. Nothing is unpickled.

    >>> import os, tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "tiny.npz")
    >>> images = np.arange(10 * 4 * 4, dtype=np.uint8).reshape(10, 4, 4)
    >>> np.savez(path, x_train=images, y_train=np.arange(10) % 2)
    >>> splits = NpzFile(path).load()
    >>> splits.input_shape, splits.num_classes, len(splits.train), len(splits.test)
    ((1, 4, 4), 2, 8, 2)
    >>> folder.cleanup()
    """

    path: str | Path = "data.npz"
    """The file."""

    train_samples: int | None = None
    """Take the first so many training rows; all if not given."""

    test_samples: int | None = None
    """Take the first so many test rows; all if not given."""

    test_fraction: float = 0.2
    """Share of the training rows that is held out where the file has no test arrays."""

    max_bytes: int = 2**31
    """Largest size of these arrays together, decompressed; checked before they are read."""

    def __post_init__(self) -> None:
        check_samples("train_samples", self.train_samples)
        check_samples("test_samples", self.test_samples)
        require_at_least(1, max_bytes=self.max_bytes)
        check_fraction(self.test_fraction)

    def scaled(self, inputs: Array, name: str) -> Tensor:
        """Other inputs on the scale of this file: shifted and scaled by its training set.

        Args:
            inputs: as `x_train`, of the same units, such as pixels from 0 to 255.
            name: where they come from, for messages.

        Returns:
            float32, of the shape of an input of `load`.

        Raises:
            FileNotFoundError, ValueError: as `load` does, and if inputs have another shape.
        """
        x_train = read_npz(self.path, ["x_train"], max_bytes=self.max_bytes)["x_train"]
        train, others = (
            channels_first(x_train, f"{self.path}: x_train"),
            channels_first(inputs, name),
        )
        if train.shape[1:] != others.shape[1:]:
            raise ValueError(
                f"{name} must be of the shape {train.shape[1:]} of {self.path}, "
                f"got {others.shape[1:]}"
            )
        kept = take("train_samples", self.train_samples, len(train), str(self.path))
        return torch.from_numpy(standardise(train[:kept], others)[1])

    def load(self) -> Splits:
        """The training and test sets of the file.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if the file is damaged or too large, a key is missing, or an array is not as
                described above; the message names file and key.
        """
        arrays = read_npz(
            self.path, ["x_train", "y_train"], ["x_test", "y_test"], max_bytes=self.max_bytes
        )
        if ("x_test" in arrays) != ("y_test" in arrays):
            raise ValueError(f"{self.path} must hold both x_test and y_test, or neither")
        for x, y in (("x_train", "y_train"), ("x_test", "y_test")):
            if x in arrays and len(arrays[x]) != len(arrays[y]):
                raise ValueError(
                    f"{self.path}: {x} and {y} must be equally long, "
                    f"got {len(arrays[x])} and {len(arrays[y])}"
                )
        x_train, y_train = arrays["x_train"], arrays["y_train"]
        x_train = channels_first(x_train, f"{self.path}: x_train")
        if "x_test" in arrays:
            x_test = channels_first(arrays["x_test"], f"{self.path}: x_test")
            y_test = arrays["y_test"]
        else:
            train, test = hold_out(y_train, self.test_fraction, str(self.path))
            x_test, y_test = x_train[test], y_train[test]
            x_train, y_train = x_train[train], y_train[train]
        # Classes are numbered before rows are left out, so that a part agrees with the whole.
        y_train, y_test, num_classes = number_labels(y_train, y_test, str(self.path))
        num_train = take("train_samples", self.train_samples, len(x_train), str(self.path))
        num_test = take("test_samples", self.test_samples, len(x_test), str(self.path))
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(
                f"{self.path}: x_train and x_test must hold inputs of one shape, "
                f"got {x_train.shape[1:]} and {x_test.shape[1:]}"
            )
        scaled = standardise(x_train[:num_train], x_test[:num_test])
        return in_memory(
            (scaled[0], y_train[:num_train]),
            (scaled[1], y_test[:num_test]),
            num_classes,
            str(self.path),
        )
