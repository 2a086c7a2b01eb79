"""Passes over the columns of the messages that rules of every kind share."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_WIDTH = 1 << 14

BLOCK = 1 << 13
"""Columns that a reducer is given at once: its copy of some ten rows of them fits the cache."""

Reducer = Callable[[Tensor], Tensor]
"""From a block `(rows, width)`, which it must not change, to `(width,)`."""


class Shard(NamedTuple):
    """What the columns at hand are of messages whose columns are shared out among processes.

    Whoever holds a shard of all messages runs a rule on it as if it were all there is: sums over
    the columns, of which a rule needs few, go through `add_up`.

    Attributes:
        dim: columns of all shards together.
        add_up: from the part that this shard adds to a sum over the columns, a tensor of any shape,
            to the sum over all shards. A collective: all shards call it equally often, with parts
            of one shape, and get the same bits, so that they decide alike.
    """

    dim: int
    add_up: Callable[[Tensor], Tensor]

    def anywhere(self, flags: Bool[Tensor, " workers"]) -> Bool[Tensor, " workers"]:
        """Which flags are raised on any shard."""
        return self.add_up(flags.double()) > 0


def whole(rows: Float[Tensor, "workers dim"]) -> Shard:
    """The one shard that holds all columns."""
    return Shard(rows.shape[1], lambda part: part)


def column_blocks(dim: int, width: int = _WIDTH) -> Iterator[slice]:
    """Slices that cover `dim` columns in order, `width` at a time."""
    for start in range(0, dim, width):
        yield slice(start, min(start + width, dim))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to calculate in: float64 for float64, float32 for all narrower ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def finite_rows(
    rows: Float[Tensor, "workers dim"], doubtful: Bool[Tensor, " workers"]
) -> Bool[Tensor, " workers"]:
    """Which rows hold finite numbers only; rows that are not `doubtful` are not read.

    Exact, and needs no memory: the smallest and the largest value of a row tell.
    """
    finite = torch.ones(len(rows), dtype=torch.bool)
    for row in doubtful.nonzero().flatten().tolist() if rows.shape[1] else []:
        low, high = rows[row].aminmax()
        finite[row] = bool(torch.isfinite(low) & torch.isfinite(high))
    return finite


def weighted_sum(
    rows: Float[Tensor, "workers dim"], weights: Float[Tensor, " workers"]
) -> Float[Tensor, " dim"]:
    """`weights @ rows` in one pass and without copying rows.

    Rows of weight 0 are never read, so that what they hold, NaN included, does not matter.
    Sums are in float32, or in float64 for float64 rows.
    """
    runs = _runs((weights != 0).tolist())
    total = rows.new_zeros(rows.shape[1])
    if len(runs) == 1 and weights[runs[0]].tolist() == [1.0]:
        return total.copy_(rows[runs[0].start])
    dtype = working_dtype(rows.dtype)
    parts = [(run, weights[run].to(rows.device, dtype)) for run in runs]
    if rows.dtype == dtype:
        for run, part in parts:
            total.addmv_(rows[run].T, part)
        return total
    for block in column_blocks(rows.shape[1]):
        wide = torch.zeros_like(total[block], dtype=dtype)
        for run, part in parts:
            wide.addmv_(rows[run, block].to(dtype).T, part)
        total[block] = wide
    return total


def distances_to(
    rows: Float[Tensor, "workers dim"], point: Float[Tensor, " dim"], shard: Shard | None = None
) -> Float[Tensor, " workers"]:
    """Euclidean distance of every row to the point, `(workers,)` float64 in main memory."""
    shard = shard or whole(rows)
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in column_blocks(len(point)):
        total += (rows[:, block].double() - point[block]).square().sum(dim=1)
    return shard.add_up(total).sqrt().cpu()


def _runs(used: list[bool]) -> list[slice]:
    """Maximal runs of consecutive True, as slices."""
    edges = [i for i in range(len(used) + 1) if (i and used[i - 1]) != (i < len(used) and used[i])]
    return [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
