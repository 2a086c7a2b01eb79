"""Floating-point tensors: whether they are finite, and which dtype to work and to answer in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phalanx.errors import NotFiniteError


def require_finite(tensors: Sequence[Tensor]) -> None:
    """Raises a `NotFiniteError` if there is NaN or infinity in one of the tensors."""
    if not all_finite(tensors):
        raise NotFiniteError("tensor must be finite, got NaN or infinity")


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no value is NaN or infinite; reads each tensor once, and writes nothing its size."""
    return all(_is_finite(x.detach()) for x in tensors if x.numel())


def _is_finite(x: Tensor) -> bool:
    # The norm is quickest, but overflows for large values, too. The extremes are NaN where a value
    # is, and infinite where one is.
    if bool(torch.linalg.vector_norm(x).isfinite()):
        return True
    return bool(torch.stack(torch.aminmax(x)).isfinite().all())


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic on tensors of this one is done in, and scales are sent in."""
    return torch.promote_types(dtype, torch.float32)


def within(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in this dtype, those beyond its range at its border."""
    limits = torch.finfo(dtype)
    if torch.finfo(values.dtype).max <= limits.max:
        return values.to(dtype)
    # A half rounds the limits of the other one out of its range.
    return values.to(working(values.dtype)).clamp(limits.min, limits.max).to(dtype)
