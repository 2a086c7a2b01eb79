"""Public domain of records: what everybody may know of them before anything is learned."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """Column of a table: numbers between two bounds, or one of several values."""

    name: str
    """As in the header."""
    values: tuple[str, ...] = ()
    """The values of a category; none of numbers."""
    low: float = 0.0
    """The smallest number."""
    high: float = 1.0
    """The largest number."""
    whole: bool = False
    """Whether they are whole numbers."""

    def __post_init__(self) -> None:
        if not self.values and not self.low < self.high:
            raise ValueError(
                f"domain: column {self.name} must have low below high, got {self.low} and "
                f"{self.high}"
            )
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"domain: column {self.name} must name every value once")

    @property
    def width(self) -> int:
        """Numbers that a cell becomes."""
        return len(self.values) or 1


@dataclass(frozen=True)
class Domain:
    """Public domain of records: shape or columns, range and classes.

    Nothing of it is protected: it must not depend on the private records, or is said not to count.
    """

    classes: tuple[Any, ...]
    """Labels, in the order of their numbers."""
    shape: tuple[int, ...] = ()
    """Of an image, `(channels, height, width)`; of rows of numbers, `(features,)`."""
    columns: tuple[Column, ...] = ()
    """Of a table, instead of a shape; the label is none of them."""
    low: float = 0.0
    """The smallest number of an image or row."""
    high: float = 255.0
    """The largest."""
    label: str = "label"
    """What the column of labels is called."""
    from_data: tuple[str, ...] = ()
    """What of this was looked up in the private records, in words."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be at least 2, each once, got {list(self.classes)}")
        if not self.low < self.high:
            raise ValueError(f"domain: low must be below high, got {self.low} and {self.high}")

    @property
    def record_shape(self) -> tuple[int, ...]:
        """Shape of a record as a generator makes it."""
        return self.shape or (sum(one.width for one in self.columns),)

    @property
    def num_features(self) -> int:
        """Numbers of a record, d."""
        return torch.Size(self.record_shape).numel()

    def encode(self, arrays: Array) -> Tensor:
        """Images or rows of numbers as `(n, d)` float32 in [-1, 1]; what is outside is clipped."""
        flat = torch.from_numpy(np.ascontiguousarray(arrays, dtype=np.float32)).flatten(1)
        return (2 * (flat - self.low) / (self.high - self.low) - 1).clamp(-1, 1)

    def encode_table(self, cells: Mapping[str, Sequence[str]]) -> Tensor:
        """Columns of a table as `(n, d)` float32 in [-1, 1]; a value of a category is one-hot.

        Raises:
            ValueError: if a cell is not in the domain.
        """
        parts = []
        for one in self.columns:
            text = list(cells[one.name])
            if one.values:
                number = {value: place for place, value in enumerate(one.values)}
                if unknown := [cell for cell in text if cell not in number]:
                    raise ValueError(
                        f"column {one.name} must hold values of the domain, got {unknown[0]!r}"
                    )
                hot = torch.zeros(len(text), one.width)
                hot[torch.arange(len(text)), torch.tensor([number[cell] for cell in text])] = 1.0
                parts.append(2 * hot - 1)
            else:
                found = torch.tensor([float(cell) for cell in text], dtype=torch.float64)
                scaled = 2 * (found - one.low) / (one.high - one.low) - 1
                parts.append(scaled.clamp(-1, 1).float().unsqueeze(1))
        return torch.cat(parts, dim=1)

    def number(self, labels: Array) -> Tensor:
        """Labels as numbers of their classes, int64.

        Raises:
            ValueError: if a label is not one of the classes.
        """
        place = {label: number for number, label in enumerate(self.classes)}
        plain = labels.tolist()
        if unknown := [one for one in plain if one not in place]:
            raise ValueError(f"labels must be of the classes {list(place)}, got {unknown[0]!r}")
        return torch.tensor([place[one] for one in plain])

    def decode(self, records: Tensor) -> Array:
        """Images or rows of numbers, in their range; uint8 where that is from 0 to 255."""
        share = (records.double().clamp(-1, 1) + 1) / 2
        found = (self.low + share * (self.high - self.low)).view(-1, *self.shape).numpy()
        pixels = (self.low, self.high) == (0.0, 255.0)
        return np.rint(found).astype(np.uint8) if pixels else found.astype(np.float32)

    def decode_table(self, records: Tensor) -> dict[str, list[str]]:
        """Columns of a table: the largest of a category's numbers is its value."""
        found, at = {}, 0
        for one in self.columns:
            part = records[:, at : at + one.width]
            at += one.width
            if one.values:
                found[one.name] = [one.values[place] for place in part.argmax(dim=1).tolist()]
            else:
                share = (part[:, 0].double().clamp(-1, 1) + 1) / 2
                numbers = (one.low + share * (one.high - one.low)).tolist()
                found[one.name] = [str(round(x)) if one.whole else f"{x:.6g}" for x in numbers]
        return found


def read_domain(path: Path, label: str) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """The columns and classes that a JSON file declares.

    It maps names of columns to two bounds, such as `[17, 90]`, or to a list of values (text); that
    of the label to the classes.

    Raises:
        ValueError: if it is no such file; the message names it and the column.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"domain must be a JSON file, {path} is not: {error}") from error
    if not isinstance(told, dict) or label not in told:
        raise ValueError(f"domain must map columns to their values, {label} among them: {path}")
    columns = []
    for name, one in told.items():
        text = isinstance(one, list) and bool(one) and all(isinstance(v, str) for v in one)
        numbers = isinstance(one, list) and len(one) == 2
        numbers = numbers and all(type(v) in (int, float) for v in one)
        if not (text or numbers) or (name == label and not text):
            raise ValueError(f"domain: {name} must be two numbers or a list of text in {path}")
        if name != label and text:
            columns.append(Column(name, tuple(one)))
        elif name != label:
            whole = all(type(v) is int for v in one)
            columns.append(Column(name, low=float(one[0]), high=float(one[1]), whole=whole))
    return tuple(columns), tuple(told[label])
