"""Wire format between processes: tensors as bytes, and back from peers that are not trusted.

Values stand one after the other, little-endian, without a header: the receiver knows dtypes and
lengths, or is sent the lengths before. Nothing is pickled. See `SharedTensor` for tensors on one
machine.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from phalanx.errors import WireError, require

Integers = Literal["<u4", "<i8"]
"""Whole numbers of four bytes from 0 on, or of eight bytes with a sign."""


def to_bytes(tensors: Sequence[Tensor]) -> UInt8[Tensor, " bytes"]:
    """The values of tensors of one device, one tensor after the other.

    >>> to_bytes([torch.tensor([1, 256], dtype=torch.int16)]).tolist()
    [1, 0, 0, 1]
    """
    pieces = [x.contiguous().view(-1).view(torch.uint8) for x in tensors]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8)


def from_bytes(data: Tensor, layout: Sequence[tuple[torch.dtype, int]]) -> tuple[Tensor, ...]:
    """One-dimensional tensors of these dtypes and lengths.

    Raises:
        WireError: unless there are as many bytes as they take; nothing is allocated before.
    """
    sizes = [dtype.itemsize * length for dtype, length in layout]
    if data.numel() != sum(sizes):
        raise WireError(f"message must have {sum(sizes)} bytes, got {data.numel()}")
    # A copy each: values of four bytes may not start at every address.
    pieces = zip(data.split(sizes) if sizes else (), layout, strict=True)
    return tuple(piece.clone().view(dtype) for piece, (dtype, _) in pieces)


def require_finite_values(tensors: Sequence[Tensor]) -> None:
    """Raises a `WireError` if there is NaN or infinity in one of a peer's tensors."""
    floats = [x for x in tensors if x.is_floating_point()]
    require(all(bool(x.isfinite().all()) for x in floats), "hold finite values")


def from_buffer(data: bytes) -> UInt8[Tensor, " bytes"]:
    """Bytes as a tensor of their own."""
    if not data:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def integers_to_bytes(values: Sequence[int], kind: Integers) -> UInt8[Tensor, " bytes"]:
    """Lengths or checksums as bytes."""
    return from_buffer(np.array(values, dtype=kind).tobytes())


def integers_from_bytes(data: UInt8[Tensor, " bytes"], kind: Integers) -> list[int]:
    """What `integers_to_bytes` wrote: a multiple of their size."""
    found: list[int] = data.cpu().numpy().view(kind).tolist()
    return found
