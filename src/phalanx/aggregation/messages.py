"""Conversion of tensors, arrays, lists and dicts to one row per worker, and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Restore = Callable[[Tensor], Any]
"""Turns a flat `(dim,)` tensor into the kind of thing that one worker sent."""


def as_rows(gradients: Any) -> tuple[Float[Tensor, "workers dim"], Restore]:
    """The messages as a `(workers, dim)` tensor, and the way back for one aggregate.

    A tensor or writable ndarray is not copied; a list is stacked.

    Raises:
        ValueError: if there are no workers, shapes or names differ, or the dtype is not floating.
    """
    if isinstance(gradients, Tensor):
        return _checked(gradients.detach()), lambda flat: flat
    if isinstance(gradients, np.ndarray):
        return _checked(_tensor(gradients)), Tensor.numpy
    if not isinstance(gradients, Sequence) or isinstance(gradients, str):
        raise ValueError(
            "gradients must be a tensor, an ndarray or a list of one message per worker, "
            f"got {type(gradients).__name__}"
        )
    if not gradients:
        raise ValueError("gradients must hold at least one worker's message, got an empty list")
    if all(isinstance(one, Mapping) for one in gradients):
        return _from_dicts(gradients)
    if all(isinstance(one, Tensor) for one in gradients):
        rows, shape = _stacked(gradients)
        return rows, lambda flat: flat.reshape(shape)
    if all(isinstance(one, np.ndarray) for one in gradients):
        rows, shape = _stacked([_tensor(one) for one in gradients])
        return rows, lambda flat: flat.reshape(shape).numpy()
    kinds = sorted({type(one).__name__ for one in gradients})
    raise ValueError(f"gradients must be all tensors, all ndarrays or all dicts, got {kinds}")


def _checked(rows: Tensor) -> Tensor:
    if rows.dtype not in DTYPES:
        names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
        raise ValueError(f"gradients must have a dtype of {names}, got {rows.dtype}")
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(
            f"gradients must have shape (workers, dim) with workers >= 1, got {tuple(rows.shape)}"
        )
    return rows


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"gradients must have a dtype of float16, float32 or float64, got {array.dtype}"
        )
    plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if plain else array.copy())


def _stacked(messages: Sequence[Tensor]) -> tuple[Tensor, torch.Size]:
    for name in ("shape", "dtype", "device"):
        if len(found := {getattr(message, name) for message in messages}) > 1:
            listed = sorted(str(each) for each in found)
            raise ValueError(f"gradients must agree in {name} across workers, got {listed}")
    rows = torch.stack([message.detach().flatten() for message in messages])
    return _checked(rows), messages[0].shape


def _from_dicts(messages: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Restore]:
    names = list(messages[0])
    for worker, message in enumerate(messages):
        if set(message) != set(names):
            raise ValueError(
                f"gradients must have the same names for every worker, got {sorted(message)} "
                f"from worker {worker} and {sorted(names)} from worker 0"
            )
    if not names:
        raise ValueError("gradients must have at least one name per worker, got empty dicts")
    parts, shapes = zip(*(_stacked([one[name] for one in messages]) for name in names), strict=True)
    if len(dtypes := {part.dtype for part in parts}) > 1:
        raise ValueError(f"gradients must have one dtype, got {sorted(str(d) for d in dtypes)}")
    sizes = [part.shape[1] for part in parts]

    def restore(flat: Tensor) -> dict[str, Tensor]:
        pieces = torch.split(flat, sizes)
        return {
            name: piece.reshape(shape)
            for name, piece, shape in zip(names, pieces, shapes, strict=True)
        }

    return torch.cat(parts, dim=1), restore
