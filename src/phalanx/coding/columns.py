"""Passes over the columns of a stack of messages in blocks that stay in the cache."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Columns: the running sum of a block stays in a level-2 cache while the rows stream by.
_BLOCK = 65_536
_CACHED = 16_384  # columns of which all workers' gradients stay in the cache


def blocks(width: int, size: int = _BLOCK) -> Iterator[slice]:
    """Slices that cut `width` columns into blocks of `size`."""
    return (slice(start, min(start + size, width)) for start in range(0, width, size))


def weighted_sum(
    messages: Float[Tensor, "workers width"], rows: Sequence[int], weights: Float[Tensor, " rows"]
) -> Float[Tensor, " width"]:
    """`weights @ messages[rows]` without copying the rows.

    Other rows are never read, whatever they hold. Sums in at least float32; the result has the
    dtype of the messages. Cost: one pass over the rows.
    """
    working = torch.promote_types(messages.dtype, torch.float32)
    weights = weights.to(device=messages.device, dtype=working)
    result = torch.zeros(messages.shape[1], dtype=messages.dtype, device=messages.device)
    slices = runs(rows)
    for columns in blocks(messages.shape[1]):
        total = torch.zeros(columns.stop - columns.start, dtype=working, device=messages.device)
        done = 0
        for run in slices:
            part = messages[run, columns].to(working)
            total.addmv_(part.T, weights[done : done + len(part)])
            done += len(part)
        result[columns] = total
    return result


def add_weighted_sums(
    messages: Float[Tensor, "workers width"],
    workers: Sequence[int],
    gradients: Float[Tensor, "rows width"],
    weights: Float[Tensor, "all_workers rows"],
) -> None:
    """Adds `weights[workers] @ gradients` to the rows of these workers, in place.

    A gradient of weight zero is not read, whatever it holds. Cost: one pass over the gradients and
    one over the messages; gradients that several workers need are read from the cache.
    """
    needed = [(worker, weights[worker].nonzero().flatten().tolist()) for worker in workers]
    for columns in blocks(messages.shape[1], _CACHED):
        part = gradients[:, columns]
        for worker, rows in needed:
            if rows:
                messages[worker, columns] += weighted_sum(part, rows, weights[worker, rows])


def not_finite(
    messages: Float[Tensor, "workers width"], asked: Bool[Tensor, " workers"]
) -> Bool[Tensor, " workers"]:
    """Which of the rows that are asked for hold NaN or infinity. Cost: one pass over them."""
    found = torch.zeros(len(messages), dtype=torch.bool)
    for row in asked.nonzero().flatten().tolist():
        found[row] = not is_finite(messages[row])
    return found


def is_finite(row: Float[Tensor, " width"]) -> bool:
    """Whether all numbers are finite: NaN shows in the extremes, and nothing is written."""
    if not len(row):
        return True
    low, high = torch.aminmax(row)
    return bool(low.isfinite() & high.isfinite())


def runs(rows: Sequence[int]) -> list[slice]:
    """Slices of neighbouring rows: a slice is a view, a list of indices is a copy."""
    groups = groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0])
    neighbours = [[row for _, row in group] for _, group in groups]
    return [slice(run[0], run[-1] + 1) for run in neighbours]
