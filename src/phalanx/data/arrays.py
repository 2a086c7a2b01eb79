"""Conversion of arrays to `Splits`: standardisation, classes, stratified splits."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from phalanx.data.base import Splits
from phalanx.randomness import generator

Array = NDArray[Any]


def channels_first(inputs: Array, name: str) -> Array:
    """A batch of images as `(rows, channels, height, width)`; a table `(rows, features)` as it is.

    Args:
        inputs: images `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)` with 1, 3 or 4 channels (the
            last axis wins where both fit), or a table `(n, features)`; numbers of any kind.
        name: file and key, for messages.

    Raises:
        ValueError: if it is neither, or a number is not finite; the message names its row.
    """
    if inputs.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold real numbers, got dtype {inputs.dtype}")
    require_finite(inputs, name)
    if inputs.ndim == 2:
        return inputs
    if inputs.ndim == 3:
        return inputs[:, None]
    if inputs.ndim == 4 and inputs.shape[3] in (1, 3, 4):
        return inputs.transpose(0, 3, 1, 2)
    if inputs.ndim == 4 and inputs.shape[1] in (1, 3, 4):
        return inputs
    raise ValueError(
        f"{name} must be images (n, h, w) or (n, h, w, c) with 1, 3 or 4 channels, or a table "
        f"(n, features), got shape {inputs.shape}"
    )


def require_finite(inputs: Array, name: str) -> None:
    """Refuses NaN and infinity, and names the first row that has one."""
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        row = int(np.argwhere(~np.isfinite(inputs))[0, 0])
        raise ValueError(f"{name} inputs must be finite, got NaN or infinity in row {row}")


def standardise(train: Array, test: Array) -> tuple[Array, Array]:
    """Shifts and scales each channel or column to mean 0 and standard deviation 1 in training.

    The test set gets the training set's shift and scale. A constant channel is only shifted.
    NumPy, one channel at a time in float64: the bits do not depend on the number of threads.
    A power of two is divided out first, so that no finite column overflows; what is then too large
    for float32 becomes infinite.

    Args:
        train: `(n, channels, ...)`, finite numbers of any kind.
        test: the same, with another n.

    Returns:
        Both as float32.
    """
    scaled = np.empty(train.shape, np.float32), np.empty(test.shape, np.float32)
    for channel in range(train.shape[1]):
        values = train[:, channel].astype(np.float64)
        mean, scale, exponent = values.flat[0], 1.0, 0
        if values.max() > values.min():
            exponent = int(np.frexp(np.abs(values).max())[1])
            values = np.ldexp(values, -exponent)
            mean, scale = values.mean(), values.std()
        with np.errstate(over="ignore"):  # to infinity, which is refused later
            scaled[0][:, channel] = (values - mean) / scale
            others = np.ldexp(test[:, channel].astype(np.float64), -exponent)
            scaled[1][:, channel] = (others - mean) / scale
    return scaled


def require_labels(labels: Array, name: str) -> None:
    """Refuses what is not one whole number or text for each row."""
    text = labels.dtype == object and all(isinstance(label, str) for label in labels.flat)
    if labels.ndim != 1 or not (text or labels.dtype.kind in "buifU"):
        raise ValueError(
            f"{name}: labels must be one whole number or text each, "
            f"got shape {labels.shape} of {labels.dtype}"
        )
    if labels.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(labels) | (labels != np.round(labels)))
        if len(wrong):
            raise ValueError(
                f"{name}: labels must be whole numbers, got {labels[wrong[0]]} in row {wrong[0]}"
            )


def number_labels(train: Array, test: Array, name: str) -> tuple[Array, Array, int]:
    """Classes as int64 numbers `0 .. num_classes - 1`, in sorted order of the training labels.

    Labels are never converted to another kind of number, which could make two of them one.

    Args:
        train: `(n,)`, whole numbers or text.
        test: the same, with another n; every label must occur in `train`.
        name: the file, for messages.

    Raises:
        ValueError: if labels are neither, are all the same, or a test label is not among the
            training labels.
    """
    for labels in (train, test):
        require_labels(labels, name)
    classes, numbered = np.unique(train, return_inverse=True)
    number = {label: place for place, label in enumerate(classes.tolist())}
    found, places = np.unique(test, return_inverse=True)
    unknown = [label for label in found.tolist() if label not in number]
    if unknown:
        raise ValueError(f"{name}: test labels must occur in the training set, got {unknown[:5]}")
    if len(number) == 1:
        raise ValueError(f"{name}: labels must be of at least 2 classes, got only {[*number]}")
    tested = np.array([number[label] for label in found.tolist()], dtype=np.int64)
    return numbered.astype(np.int64), tested[places], len(classes)


def hold_out(labels: Array, fraction: float, name: str) -> tuple[Array, Array]:
    """Row numbers of a training and a test set: the same ones always, each class in proportion.

    Args:
        labels: `(n,)`, the classes.
        fraction: share of the rows that goes to the test set, in (0, 1).
        name: the file, for messages.

    Raises:
        ValueError: if they are no labels, or either set would be empty.
    """
    require_labels(labels, name)
    num_rows = len(labels)
    num_test = round(fraction * num_rows)
    if not 0 < num_test < num_rows:
        raise ValueError(
            f"{name}: test_fraction must leave rows on both sides, "
            f"got {fraction} of {num_rows} rows"
        )
    shuffled = torch.randperm(num_rows, generator=generator("hold-out")).numpy()
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Evenly spaced places of the rows sorted by class: within one row of every class's share.
    places = ((np.arange(num_test) + 0.5) * num_rows / num_test).astype(np.int64)
    test = np.sort(by_class[places])
    return np.setdiff1d(np.arange(num_rows), test), test


def check_fraction(test_fraction: float) -> None:
    """Refuses a share of test rows outside (0, 1)."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be above 0 and below 1, got {test_fraction}")


def check_samples(argument: str, samples: int | None) -> None:
    """Refuses to take fewer than one of the samples."""
    if samples is not None and samples < 1:
        raise ValueError(f"{argument} must be at least 1, got {samples}")


def take(argument: str, samples: int | None, available: int, name: str) -> int:
    """How many samples are taken: all where `samples` is None.

    Args:
        argument: the argument's name, for messages.
        samples: how many are asked for.
        available: how many there are.
        name: the file, for messages.

    Raises:
        ValueError: if there are not so many.
    """
    if samples is not None and samples > available:
        raise ValueError(f"{argument} must be at most {available} for {name}, got {samples}")
    return available if samples is None else samples


def in_memory(
    train: tuple[Array, Array], test: tuple[Array, Array], num_classes: int, name: str
) -> Splits:
    """The `Splits` of inputs and numbered labels.

    Args:
        train: inputs `(n, ...)`, whole numbers being tokens, and labels `(n,)` or `(n, length)`.
        test: the same, with another n.
        num_classes: how many classes there are.
        name: the file, for messages.

    Raises:
        ValueError: if lengths or shapes disagree, a set is empty, or an input is not finite.
    """
    for part, (inputs, labels) in {"train": train, "test": test}.items():
        if len(inputs) != len(labels) or len(inputs) == 0:
            raise ValueError(
                f"{name}: {part} must have as many inputs as labels, and at least 1, "
                f"got {len(inputs)} inputs and {len(labels)} labels"
            )
        require_finite(inputs, f"{name}: {part}")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"{name}: train and test inputs must have one shape, "
            f"got {train[0].shape[1:]} and {test[0].shape[1:]}"
        )
    return Splits(
        train=_tensors(*train),
        test=_tensors(*test),
        input_shape=train[0].shape[1:],
        num_classes=num_classes,
    )


def _tensors(inputs: Array, labels: Array) -> TensorDataset:
    kind = np.int64 if inputs.dtype.kind in "iu" else np.float32
    return TensorDataset(
        torch.from_numpy(np.ascontiguousarray(inputs, dtype=kind)),
        torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)),
    )
