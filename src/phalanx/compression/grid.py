"""Buckets of values on a grid of their own: what the quantisers share."""

from typing import Literal

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from phalanx.compression.base import working

Norm = Literal["l2", "max"]

_SMALL, _LARGE = 1e-15, 1e15  # squares in between, and sums of them, are normal float32 numbers


def num_buckets(dim: int, bucket_size: int) -> int:
    """Buckets that `dim` values fill, the last of them maybe not whole."""
    return -(-dim // bucket_size)


def buckets(flat: Float[Tensor, " dim"], bucket_size: int) -> Float[Tensor, "buckets size"]:
    """The values in rows, in the dtype of arithmetic; zeros after the last."""
    size = min(bucket_size, flat.numel())
    wide = flat.to(working(flat.dtype))
    missing = -flat.numel() % size
    return (torch.nn.functional.pad(wide, (0, missing)) if missing else wide).view(-1, size)


def norms(rows: Float[Tensor, "buckets size"], norm: Norm) -> Float[Tensor, " buckets"]:
    """The norm of every row, at least its largest magnitude and never infinite."""
    largest: Tensor = torch.linalg.vector_norm(rows, torch.inf, dim=1)
    if norm == "max":
        return largest
    found = torch.linalg.vector_norm(rows, dim=1)
    # Squares of large values overflow, those of small ones vanish: not in float64.
    unsafe = ((largest > _LARGE) | (largest < _SMALL)).nonzero().flatten()
    if len(unsafe):
        exact = torch.linalg.vector_norm(rows[unsafe], dim=1, dtype=torch.float64)
        found[unsafe] = exact.clamp_(max=torch.finfo(rows.dtype).max).to(rows.dtype)
    return torch.maximum(found, largest)


def share(
    rows: Float[Tensor, "buckets size"], scales: Float[Tensor, " buckets"]
) -> Float[Tensor, "buckets size"]:
    """Magnitudes as shares of the scales: 0 to 1, and 0 where the scale is 0."""
    return rows.abs() / torch.where(scales > 0, scales, 1)[:, None]


def values(
    codes: Int16[Tensor, "buckets size"],
    scales: Float[Tensor, " buckets"],
    levels: int,
) -> Float[Tensor, "buckets size"]:
    """What levels from `-levels` to `levels` stand for."""
    return scales[:, None] * (codes.to(scales.dtype) / levels)
