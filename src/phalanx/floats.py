"""Floating-point tensors: whether they are finite, and which dtype to work and to answer in."""

import functools
from collections.abc import Iterable, Sequence

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


def working(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic on tensors of these is done in, and scales are sent in.

    float64 if one of them is, float32 for all narrower ones; complex if one of them is.
    """
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest dtype that holds the values of all of these; at least one is given."""
    return functools.reduce(torch.promote_types, dtypes)


def within(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in this dtype, those beyond its range at its border."""
    limits = torch.finfo(dtype)
    if torch.finfo(values.dtype).max <= limits.max:
        return values.to(dtype)
    # A half rounds the limits of the other one out of its range.
    return values.to(working(values.dtype)).clamp(limits.min, limits.max).to(dtype)
