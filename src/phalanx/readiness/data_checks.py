"""Checks of labelled data: what makes an estimate impossible, and what makes it misleading."""

from typing import Any

import numpy as np

from phalanx.data.arrays import Array, require_finite, require_labels


def checked_inputs(inputs: Any, name: str) -> Array:
    """Inputs as an array of finite numbers `(n, ...)`, float32 or float64, or of texts `(n,)`.

    Raises:
        ValueError: if they are neither, or there are none.
    """
    array = np.asarray(inputs)
    if array.dtype.kind == "O" and all(isinstance(one, str) for one in array.flat):
        array = array.astype(str)
    if len(array.shape) == 0 or len(array) == 0:
        raise ValueError(f"{name} must have at least 1 row, got shape {array.shape}")
    if array.dtype.kind == "U" and array.ndim == 1:
        return array
    if array.dtype.kind not in "buif" or array.ndim < 2 or array[0].size == 0:
        raise ValueError(
            f"{name} must be numbers (n, features), images or texts (n,), "
            f"got shape {array.shape} of {array.dtype}"
        )
    require_finite(array, name)
    return array if array.dtype == np.float32 else array.astype(np.float64)


def numbered_classes(
    train: Any, test: Any, num_classes: int | None
) -> tuple[Array, Array, list[Any], int]:
    """Labels as numbers of classes, the classes, and how many there are.

    Args:
        train: `(n,)`, whole numbers or text.
        test: `(m,)`; classes that only occur here count.
        num_classes: how many there are; those that occur if not given.

    Raises:
        ValueError: if they are no labels, fewer than 2 classes, more than `num_classes`, or differ
            in nothing but blanks.
    """
    train, test = np.asarray(train), np.asarray(test)
    for labels, name in ((train, "train"), (test, "test")):
        require_labels(labels, name)
    if (train.dtype.kind in "UO") != (test.dtype.kind in "UO"):
        raise ValueError("labels must be numbers or texts in train and test alike")
    if train.dtype.kind in "UO":
        train, test = train.astype(str), test.astype(str)
    classes = np.unique(np.concatenate([train, test]))
    if classes.dtype.kind == "U":
        plain, first, counts = np.unique(
            np.char.strip(classes), return_index=True, return_counts=True
        )
        if not plain[0]:
            raise ValueError("labels must not be empty or blank")
        if counts.max() > 1:
            twice = classes[first[counts.argmax()]]
            raise ValueError(f"labels must differ in more than blanks around them, got {twice!r}")
    if len(classes) < 2:
        raise ValueError(f"labels must be of at least 2 classes, got only {classes.tolist()}")
    if num_classes is not None and num_classes < len(classes):
        raise ValueError(
            f"num_classes must be at least the {len(classes)} that occur, got {num_classes}"
        )
    numbers = np.searchsorted(classes, train), np.searchsorted(classes, test)
    return *numbers, classes.tolist(), num_classes or len(classes)


def require_alike(one: Array, other: Array, names: str) -> None:
    """Checks that two arrays of inputs have one kind and shape.

    Raises:
        ValueError: if they do not.
    """
    kinds = one.dtype.kind == "U", other.dtype.kind == "U"
    if one.shape[1:] != other.shape[1:] or kinds[0] != kinds[1]:
        raise ValueError(
            f"{names} must be of one kind and shape, got {one.shape[1:]} of {one.dtype} and "
            f"{other.shape[1:]} of {other.dtype}"
        )


def require_as_many(inputs: Array, labels: Array, name: str) -> None:
    """Checks that there is a label for each input.

    Raises:
        ValueError: if there is not.
    """
    if len(inputs) != len(labels):
        raise ValueError(
            f"{name} must have a label for each of {len(inputs)} rows, got {len(labels)}"
        )


def findings_of_labels(train: Array, test: Array, num_classes: int) -> list[str]:
    """What in the labels makes an estimate misleading, in sentences.

    Args:
        train: `(n,)`, numbers of classes.
        test: `(m,)`.
        num_classes: how many classes there are.
    """
    found = []
    counts = np.bincount(train, minlength=num_classes)
    if empty := int((counts == 0).sum()):
        found.append(
            f"{empty} of {num_classes} classes have no training rows: their test rows count as "
            "errors, whatever the features."
        )
    if single := int((counts == 1).sum()):
        found.append(f"{single} of {num_classes} classes have one training row only.")
    if missing := int((np.bincount(test, minlength=num_classes) == 0).sum()):
        found.append(f"{missing} of {num_classes} classes have no test rows and are not measured.")
    if len(test) < 100:
        found.append(f"{len(test)} test rows are few: the interval is wide.")
    return found


def findings_of_inputs(train: Array, test: Array, both: Array) -> list[str]:
    """What in the inputs makes an estimate misleading, in sentences.

    Args:
        train: inputs `(n, ...)`.
        test: inputs `(m, ...)`.
        both: which test rows are training rows as well; see `duplicates`.
    """
    found = []
    if both.any():
        found.append(
            f"{both.sum()} of {len(test)} test rows are training rows, too: the error on them is "
            "that of their labels, and the estimate is too low for new data."
        )
    if train.dtype.kind != "U":
        flat = train.reshape(len(train), -1)
        constant = int((flat == flat[0]).all(axis=0).sum())
        if constant == flat.shape[1]:
            found.append("All features are constant: there is nothing to tell classes apart by.")
        elif constant:
            found.append(f"{constant} of {flat.shape[1]} features are constant.")
    return found


def duplicates(train: Array, test: Array) -> Array:
    """Which test rows are training rows as well, to the bit: `(m,)` of bool."""
    if train.dtype.kind == "U":
        found: Array = np.isin(test, train)
        return found
    # Adding 0 makes one zero of two.
    seen = {row.tobytes() for row in train + train.dtype.type(0)}
    rows = test.astype(train.dtype) + train.dtype.type(0)
    return np.array([row.tobytes() in seen for row in rows])
