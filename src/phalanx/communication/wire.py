"""Tensors as the bytes that a neighbour reads."""

import torch
from torch import Tensor

from phalanx.errors import WireError


def to_bytes(tensors: list[Tensor]) -> Tensor:
    """The tensors' values one after the other, as uint8."""
    return torch.cat([x.contiguous().view(-1).view(torch.uint8) for x in tensors])


def from_bytes(row: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Tensors like these out of a neighbour's bytes, of which there are as many as needed.

    Raises:
        WireError: if a value is not finite.
    """
    sizes = [x.numel() * x.element_size() for x in like]
    # A copy each: values of four bytes may not start at every address.
    pieces = zip(row.split(sizes), like, strict=True)
    found = [piece.clone().view(x.dtype).view(x.shape) for piece, x in pieces]
    if not all(bool(x.isfinite().all()) for x in found):
        raise WireError("message must hold finite values")
    return found
