"""Fetching of samples from a data set by index, stacked."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from phalanx.randomness import seeded


def fetch(dataset: Dataset[tuple[Tensor, ...]], samples: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets, stacked; tensors are indexed, other data sets asked in turn.

    Raises:
        ValueError: if the samples are no pairs of tensors, arrays or numbers of equal shapes.
    """
    if type(dataset) is TensorDataset:  # one derived from it may change what it is asked for
        if len(dataset.tensors) != 2:
            raise ValueError(_no_pairs(f"{len(dataset.tensors)} tensors"))
        inputs, targets = dataset.tensors
        return inputs[samples], targets[samples]
    if not len(samples):  # as many dimensions as a sample has
        inputs, targets = fetch(dataset, torch.zeros(1, dtype=torch.int64))
        return inputs[:0], targets[:0]
    items = [dataset[index] for index in samples.tolist()]
    try:
        found = default_collate(items)
    except (RuntimeError, TypeError) as error:
        raise ValueError(_unlike(items, error)) from error
    pair = isinstance(found, Sequence) and len(found) == 2
    if not pair or not all(isinstance(part, Tensor) for part in found):
        raise ValueError(_no_pairs(_described(items[0])))
    return found[0], found[1]


def sample_problems(
    dataset: Dataset[tuple[Tensor, ...]], name: str, num_samples: int = 2
) -> list[str]:
    """Why a data set cannot be trained on, as far as its first samples show; empty if it can."""
    streams = isinstance(dataset, IterableDataset)
    if streams or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return [
            f"{name} must have a length and items by number, which {type(dataset).__name__} has "
            "not" + (": collect the stream in a list" if streams else "")
        ]
    size = len(dataset)
    try:
        with seeded("samples"):  # it may crop or flip at random
            if size:
                fetch(dataset, torch.arange(min(num_samples, size)))
    except ValueError as error:
        return [f"{name}: {error}"]
    except Exception as error:  # the data set is the user's
        return [f"{name} must give its items by number, got {type(error).__name__}: {error}"]
    return []


def _no_pairs(found: str) -> str:
    return f"items must be pairs (input, target) of tensors, arrays or numbers, got {found}"


def _unlike(items: Sequence[Any], error: Exception) -> str:
    for part in zip(*items, strict=False) if isinstance(items[0], tuple | list) else ():
        shapes = sorted({tuple(getattr(one, "shape", ())) for one in part})
        if len(shapes) > 1:
            return (
                f"samples of a batch must have one shape, got {shapes[0]} and {shapes[1]}: pad or "
                "crop them in the data set"
            )
    return f"{_no_pairs(_described(items[0]))}, which do not stack: {error}"


def _described(item: object) -> str:
    if isinstance(item, Mapping):
        return f"a dict of {list(item)}"
    if isinstance(item, tuple | list):
        return f"{len(item)} parts ({', '.join(type(one).__name__ for one in item)})"
    return f"one {type(item).__name__}"
