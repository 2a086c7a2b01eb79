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


def power_of_two(x: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """The largest power of two up to the largest magnitude, of all values or along axes; 1 for 0.

    Finite values divided by it have squares that do not overflow, and no digit is lost.

    >>> power_of_two(torch.tensor([-3.0, 1.0])), power_of_two(torch.zeros(2))
    (tensor(2.), tensor(1.))
    """
    if not x.numel():
        return x.new_ones(())
    largest = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    exponent = torch.frexp(largest).exponent - 1
    found = torch.ldexp(torch.ones_like(largest, dtype=torch.float64), exponent).to(x.dtype)
    return found.where((largest > 0) & largest.isfinite() & (found > 0), 1)


def euclidean_norm(x: Tensor, dim: int | None = None) -> Tensor:
    """Euclidean norm in float64, of all values or along an axis, however large or small they are.

    Cost: one pass; a few more for float64 whose squares over- or underflow.
    """
    found: Tensor = torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64)
    if x.dtype != torch.float64 or not x.numel():
        return found
    low, high = torch.aminmax(found)
    if low > 2.0**-400 and high < 2.0**400:
        return found
    scale = power_of_two(x, dim)
    exact: Tensor = torch.linalg.vector_norm(x / scale, dim=dim)
    return exact * (scale if dim is None else scale.squeeze(dim))


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
