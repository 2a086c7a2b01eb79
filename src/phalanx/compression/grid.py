"""Bucketed grids that quantisers round to."""

from typing import Literal

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from phalanx.floats import euclidean_norm, working

Norm = Literal["l2", "max"]

_BLOCK = 1 << 16  # values at a time
_SMALL, _LARGE = 1e-12, 1e15  # norms in between need no squares beyond normal float32 numbers


def num_buckets(dim: int, bucket_size: int) -> int:
    """Buckets that `dim` values fill, the last of them maybe not whole."""
    return -(-dim // bucket_size)


def buckets(flat: Float[Tensor, " dim"], bucket_size: int) -> Float[Tensor, "buckets size"]:
    """The values in rows, in the dtype of arithmetic; zeros after the last."""
    wide = flat.to(working(flat.dtype))
    missing = -flat.numel() % bucket_size
    whole = torch.nn.functional.pad(wide, (0, missing)) if missing else wide
    return whole.view(-1, bucket_size)


def norms(rows: Float[Tensor, "buckets size"], norm: Norm) -> Float[Tensor, " buckets"]:
    """The norm of every row, never infinite; a Euclidean one may round to less than a value."""
    if norm == "max":
        # Not `vector_norm`, whose maxima take ten times as long.
        return rows.abs().amax(dim=1)
    found: Tensor = torch.linalg.vector_norm(rows, dim=1)
    # Squares of large values overflow, those of small ones vanish.
    low, high = torch.aminmax(found)
    if low < _SMALL or high > _LARGE:
        unsafe = ((found > _LARGE) | (found < _SMALL)).nonzero().flatten()
        exact = euclidean_norm(rows[unsafe], dim=1)
        found[unsafe] = exact.clamp_(max=torch.finfo(rows.dtype).max).to(rows.dtype)
    return found


def share(
    rows: Float[Tensor, "buckets size"], scales: Float[Tensor, " buckets"]
) -> Float[Tensor, "buckets size"]:
    """Magnitudes as shares of the scales: 0 to 1, and 0 where the scale is 0."""
    shares = rows.abs() / torch.where(scales > 0, scales, 1)[:, None]
    return shares.clamp_(max=1)  # a norm may have been rounded down


def values(
    codes: Int8[Tensor, "buckets size"],
    scales: Float[Tensor, " allscales"],
    levels: int,
    out: Float[Tensor, "buckets size"],
) -> None:
    """Writes what levels from `-levels` to `levels` stand for, as many at a time as are cached."""
    depth = max(1, _BLOCK // out.shape[1]) if out.device.type == "cpu" else max(1, len(out))
    for start in range(0, len(out), depth):
        block = out[start : start + depth].copy_(codes[start : start + depth])
        block.div_(levels).mul_(scales[start : start + len(block), None])
