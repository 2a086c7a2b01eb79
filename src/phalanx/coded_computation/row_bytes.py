"""Rows of tensors as bytes, and back."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor


def pack_rows(tensors: Sequence[Tensor]) -> UInt8[Tensor, "rows bytes"]:
    """The rows of several tensors side by side, as bytes; of any dtype.

    Args:
        tensors: of as many rows each, as in a `TensorDataset`.

    Raises:
        ValueError: if there are none, or they differ in the number of rows.

    >>> import torch
    >>> pack_rows([torch.tensor([1, 2], dtype=torch.int16), torch.tensor([True, False])])
    tensor([[1, 0, 1],
            [2, 0, 0]], dtype=torch.uint8)
    """
    if not tensors or any(one.ndim == 0 or len(one) != len(tensors[0]) for one in tensors):
        shapes = [tuple(one.shape) for one in tensors]
        raise ValueError(f"tensors must have rows, as many each, got shapes {shapes}")
    return torch.cat([_as_bytes(one.detach().cpu()) for one in tensors], dim=1)


def unpack_rows(content: UInt8[Tensor, "rows bytes"], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The rows that `pack_rows` packed.

    Args:
        content: the bytes.
        like: tensors of the dtypes and row shapes that are to come back; their rows are not read.

    Raises:
        ValueError: if a row does not have as many bytes as one of theirs.
    """
    widths = [math.prod(one.shape[1:]) * one.element_size() for one in like]
    if sum(widths) != content.shape[1]:
        raise ValueError(f"content must have {sum(widths)} bytes a row, got {content.shape[1]}")
    parts = content.split(widths, dim=1)
    return tuple(
        _from_bytes(part, one.dtype, (len(content), *one.shape[1:]))
        for part, one in zip(parts, like, strict=True)
    )


def _as_bytes(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().reshape(-1).resolve_conj().resolve_neg()
    width = math.prod(tensor.shape[1:]) * tensor.element_size()
    return flat.view(torch.uint8).reshape(len(tensor), width)


def _from_bytes(content: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    flat = content.reshape(-1).clone()  # memory of its own begins where every dtype may begin
    return flat.view(dtype).reshape(shape)
