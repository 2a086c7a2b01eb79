"""Private records on the scale of generators, read from archives and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.data.arrays import channels_first
from phalanx.data.npz_members import read_npz
from phalanx.data.tables import MISSING, read_labels, read_numbers, read_table
from phalanx.privacy.generation.domain import Column, Domain, read_domain

_MAX_BYTES = 2**31
_CLASSES = "the list of classes"


@dataclass(frozen=True)
class PrivateData:
    """Private records, and others of the same domain to test on, if there are any."""

    x: Float[Tensor, "n d"]
    """Records in [-1, 1]."""
    y: Int[Tensor, " n"]
    """Their classes."""
    domain: Domain
    """What is public of them."""
    x_test: Float[Tensor, "m d"] | None = None
    """Real records that no generator sees."""
    y_test: Int[Tensor, " m"] | None = None
    """Their classes."""

    def rows(self, chosen: Tensor) -> "PrivateData":
        """The same with some of the private records alone."""
        return replace(self, x=self.x[chosen], y=self.y[chosen])


def read_private(
    path: Path | str,
    *,
    label: str | None = None,
    classes: Sequence[Any] | None = None,
    domain: Path | None = None,
) -> PrivateData:
    """The private records of an `.npz` archive or a CSV table.

    Args:
        path: `.npz` with `x_train`, `y_train` and, if there are any, `x_test`, `y_test`; or a CSV
            file with a header, `.gz` or not, in whose column `split`, if there is one, stands
            `train` or `test`.
        label: the column of a table that holds the class.
        classes: the labels; those that the private records have if None, which is told.
        domain: a JSON file with the bounds and values of a table's columns, see `read_domain`; what
            the private records have if None, which is told.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it holds something else.
    """
    path = Path(path)
    if path.suffix == ".npz":
        if label is not None or domain is not None:
            raise ValueError("label and domain are of tables, got them with an .npz file")
        return _read_arrays(path, classes)
    if label is None:
        raise ValueError(f"label must name the column of {path} that holds the class")
    return _read_csv(path, label, classes, domain)


def _read_arrays(path: Path, classes: Sequence[Any] | None) -> PrivateData:
    arrays = read_npz(path, ["x_train", "y_train"], ["x_test", "y_test"], max_bytes=_MAX_BYTES)
    x = channels_first(arrays["x_train"], f"{path}: x_train")
    labels = arrays["y_train"]
    if labels.ndim != 1 or len(labels) != len(x):
        raise ValueError(f"{path}: y_train must hold one label for each row of x_train")
    told = () if classes is not None else (_CLASSES,)
    known = tuple(np.unique(labels).tolist() if classes is None else classes)
    low, high = 0.0, 255.0
    if x.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        told = (*told, "the smallest and largest number")
    domain = Domain(known, shape=tuple(x.shape[1:]), low=low, high=high, from_data=told)
    data = PrivateData(domain.encode(x), domain.number(labels), domain)
    if "x_test" not in arrays or "y_test" not in arrays:
        return data
    others = channels_first(arrays["x_test"], f"{path}: x_test")
    if others.shape[1:] != x.shape[1:] or len(others) != len(arrays["y_test"]):
        raise ValueError(f"{path}: x_test must be of the shape of x_train, with a label each")
    number = domain.number(arrays["y_test"])
    return replace(data, x_test=domain.encode(others), y_test=number)


def _read_csv(
    path: Path, label: str, classes: Sequence[Any] | None, domain: Path | None
) -> PrivateData:
    table = read_table(path, [label], None, _MAX_BYTES)
    labels = np.array([str(one) for one in read_labels(table, label, MISSING)], dtype=object)
    names = [name for name in table.columns if name not in (label, "split")]
    if domain is not None:
        columns, known = read_domain(domain, label)
        if {one.name for one in columns} != set(names):
            raise ValueError(f"domain must name the columns {names} of {path}, see {domain}")
        made = Domain(known, columns=columns, label=label)
    else:
        columns = tuple(_column(table, name) for name in names)
        known = tuple(sorted(set(labels)) if classes is None else map(str, classes))
        told = ("the bounds and values of the columns", *([_CLASSES] if classes is None else []))
        made = Domain(known, columns=columns, label=label, from_data=told)
    x = made.encode_table({name: table.columns[name].tolist() for name in names})
    y = made.number(labels)
    if "split" in table.columns:
        train = torch.from_numpy(table.columns["split"] == "train")
        return PrivateData(x[train], y[train], made, x[~train], y[~train])
    return PrivateData(x, y, made)  # a split by class would depend on what is private


def _column(table: Any, name: str) -> Column:
    numbers = read_numbers(table, name, ())
    if numbers is None:
        return Column(name, tuple(sorted(set(table.columns[name].tolist()))))
    low, high = float(numbers.min()), float(numbers.max())
    whole = bool((numbers == np.rint(numbers)).all())
    return Column(name, low=low, high=high if high > low else low + 1, whole=whole)
