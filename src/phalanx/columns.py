"""Passes over the columns of a table of messages, in blocks that stay in the cache."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.floats import working

_WIDTH = 1 << 14
_LARGE = 2.0**900  # sums of squares up to here, and from its inverse on, are exact enough

BLOCK = 1 << 13
"""Columns that a reducer is given at once: its copy of some ten rows of them fits the cache."""

WIDE_BLOCK = 1 << 16
"""Columns of which one running sum fits the level-2 cache while the rows stream by."""

Reducer = Callable[[Tensor], Tensor]
"""From a block `(rows, width)`, which it must not change, to `(width,)`."""


class Shard(NamedTuple):
    """One process's part of messages whose columns are shared out among processes.

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

    def generator(self) -> torch.Generator:
        """Randomness that all shards share, and that no one of them chose."""
        drawn = self.add_up(torch.tensor(secrets.randbits(40)))
        return torch.Generator().manual_seed(int(drawn))


def whole(rows: Float[Tensor, "workers dim"]) -> Shard:
    """The one shard that holds all columns."""
    return Shard(rows.shape[1], lambda part: part)


def column_blocks(dim: int, width: int = _WIDTH) -> Iterator[slice]:
    """Slices that cover `dim` columns in order, `width` at a time."""
    for start in range(0, dim, width):
        yield slice(start, min(start + width, dim))


def finite_rows(
    rows: Float[Tensor, "workers dim"], asked: Bool[Tensor, " workers"]
) -> Bool[Tensor, " workers"]:
    """Which rows hold finite numbers only; rows that are not `asked` for count as finite, unread.

    Exact, and needs no memory: the smallest and the largest value of a row tell.
    """
    finite = torch.ones(len(rows), dtype=torch.bool)
    for row in asked.nonzero().flatten().tolist() if rows.shape[1] else []:
        low, high = rows[row].aminmax()
        finite[row] = bool(torch.isfinite(low) & torch.isfinite(high))
    return finite


def weighted_sum(
    rows: Float[Tensor, "workers dim"], weights: Float[Tensor, " workers"]
) -> Float[Tensor, " dim"]:
    """`weights @ rows` in one pass and without copying rows.

    Rows of weight 0 are never read, so that what they hold, NaN included, does not matter.
    Sums are in float32, or in float64 for float64 rows; the result has the dtype of the rows.
    """
    runs = runs_of((weights != 0).tolist())
    total = rows.new_zeros(rows.shape[1])
    if len(runs) == 1 and weights[runs[0]].tolist() == [1.0]:
        return total.copy_(rows[runs[0].start])
    dtype = working(rows.dtype)
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


def add_weighted_sums(
    messages: Float[Tensor, "workers width"],
    workers: Sequence[int],
    gradients: Float[Tensor, "rows width"],
    weights: Float[Tensor, "all_workers rows"],
) -> None:
    """Adds `weights[workers] @ gradients` to the rows of these workers, in place.

    A gradient of weight 0 is not read, whatever it holds. Cost: one pass over the gradients and
    one over the messages; gradients that several workers need are read from the cache.
    """
    senders = [worker for worker in workers if weights[worker].any()]
    for columns in column_blocks(messages.shape[1]):
        part = gradients[:, columns]
        for worker in senders:
            messages[worker, columns] += weighted_sum(part, weights[worker])


def distances_to(
    rows: Float[Tensor, "workers dim"], point: Float[Tensor, " dim"], shard: Shard | None = None
) -> Float[Tensor, " workers"]:
    """Euclidean distance of every row to the point, `(workers,)` float64 in main memory.

    Cost: one pass; one more for float64 rows whose squares over- or underflow.
    """
    shard = shard or whole(rows)
    squared = _squared_distances_to(rows, point, shard, 1.0)
    distances = squared.sqrt()
    if rows.dtype == torch.float64:
        for unfit, scale in ((squared > _LARGE, 2.0**-600), (squared < 1 / _LARGE, 2.0**600)):
            if unfit.any():
                scaled = _squared_distances_to(rows, point, shard, scale).sqrt()
                distances = torch.where(unfit, scaled / scale, distances)
    return distances


def _squared_distances_to(
    rows: Float[Tensor, "workers dim"], point: Float[Tensor, " dim"], shard: Shard, scale: float
) -> Float[Tensor, " workers"]:
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in column_blocks(len(point)):
        offsets = rows[:, block].double()
        if scale != 1:
            total += (offsets * scale - point[block] * scale).square().sum(dim=1)
        else:
            total += (offsets - point[block]).square().sum(dim=1)
    return shard.add_up(total).cpu()


def runs_of(used: list[bool]) -> list[slice]:
    """Maximal runs of consecutive True, as slices: a slice is a view, a list of rows is a copy.

    >>> runs_of([True, True, False, True])
    [slice(0, 2, None), slice(3, 4, None)]
    """
    edges = [i for i in range(len(used) + 1) if (i and used[i - 1]) != (i < len(used) and used[i])]
    return [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
