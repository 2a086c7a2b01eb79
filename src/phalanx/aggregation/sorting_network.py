"""Sorting networks: order statistics of every column at once, by minima and maxima of rows."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_MAX_PER_ROW = 6.7  # comparators; above, a sort of contiguous columns is faster (on AVX-512)
_MAX_ROWS = 128  # above, rows of a block do not fit the cache together


class Comparator(NamedTuple):
    """Puts the smaller of two wires on `low` and the larger on `high`, as far as anybody asks."""

    low: int
    high: int
    wants_low: bool
    wants_high: bool


@lru_cache(maxsize=256)
def comparators(num_rows: int, ranks: tuple[int, ...]) -> tuple[Comparator, ...]:
    """Batcher's odd-even merge network, without what does not influence the ranks wanted.

    Source: K. Batcher, "Sorting networks and their applications", AFIPS Spring Joint Computer
    Conference, 1968.

    >>> len(comparators(15, tuple(range(15)))), len(comparators(15, (7,)))
    (59, 49)
    """
    return _pruned(_batcher(num_rows), set(ranks))


@lru_cache(maxsize=256)
def trimming(num_rows: int, num_trimmed: int) -> tuple[tuple[Comparator, ...], tuple[int, ...]]:
    """A network that takes the extremes off at either end, and leaves the rest in any order.

    Sorts short groups and merges their extremes, which takes about half of what sorting all would.

    Returns:
        Its comparators; and the wires, those of the smallest first, those of the largest last.

    >>> len(trimming(45, 4)[0]), len(comparators(45, tuple(range(4, 41))))
    (186, 355)
    """
    length = 2 << max(0, num_trimmed - 1).bit_length()
    starts = range(0, max(1, num_rows - 2 * num_trimmed + 1), length) if num_trimmed else []
    stops = [*starts[1:], num_rows]
    pairs: list[tuple[int, int]] = []
    lows, highs = [], []
    for start, stop in zip(starts, stops, strict=False):
        pairs += [(start + low, start + high) for low, high in _batcher(stop - start)]
        lows.append(list(range(start, start + num_trimmed)))
        highs.append(list(range(stop - num_trimmed, stop)))
    resort = _batcher(num_trimmed)
    for low, high in zip(lows[1:], highs[1:], strict=True):
        pairs += zip(lows[0], reversed(low), strict=True)
        pairs += zip(reversed(high), highs[0], strict=True)
        pairs += [(ends[i], ends[j]) for ends in (lows[0], highs[0]) for i, j in resort]
    smallest, largest = (ends[0] if num_trimmed else [] for ends in (lows, highs))
    middle = [wire for wire in range(num_rows) if wire not in {*smallest, *largest}]
    return _pruned(pairs, set(middle)), (*smallest, *middle, *largest)


def _pruned(pairs: list[tuple[int, int]], wanted: set[int]) -> tuple[Comparator, ...]:
    """A network without what does not influence the wires that are wanted in the end."""
    kept = []
    for low, high in reversed(pairs):
        if low in wanted or high in wanted:
            kept.append(Comparator(low, high, low in wanted, high in wanted))
            wanted |= {low, high}
    return tuple(reversed(kept))


class OrderStatistics:
    """The values of given ranks in every column of a block of rows.

    Keeps its buffers (one block and a row) from one block to the next.

    Args:
        num_rows: rows of every block.
        ranks: which values, 0 for the smallest.
        in_order: whether it matters which of these values has which rank; if not, the ranks are
            all but the first and the last few, and `mean` of all of them is asked for.

    >>> median = OrderStatistics(3, (1,))
    >>> median(torch.tensor([[5.0, 1.0], [2.0, 2.0], [9.0, 0.0]]))
    [tensor([5., 1.])]
    """

    def __init__(self, num_rows: int, ranks: tuple[int, ...], *, in_order: bool = True) -> None:
        self.num_rows = num_rows
        self.ranks = ranks
        self._wires: Sequence[int] = range(num_rows)
        self._network = comparators(num_rows, ranks)
        if not in_order:
            self._network, self._wires = trimming(num_rows, ranks[0])
        few = len(self._network) <= _MAX_PER_ROW * num_rows and num_rows <= _MAX_ROWS
        self._use = self._exchange if few else self._sort
        self._space: Tensor | None = None
        self._values = torch.empty(0, 0)
        self._order: list[int] = []

    def __call__(self, block: Float[Tensor, "rows width"]) -> list[Float[Tensor, " width"]]:
        """One row per rank, valid until the next call; the block is not changed."""
        self._use(block)
        return [self._values[self._order[rank]] for rank in self.ranks]

    def mean(self, ranks: Sequence[int]) -> Float[Tensor, " width"]:
        """The mean of some of the values that the last call gave, as they are by now.

        It does not overflow where their sum would.
        """
        shares = torch.zeros(len(self._values), dtype=self._values.dtype)
        shares[[self._order[rank] for rank in ranks]] = 1 / len(ranks)
        return shares.to(self._values.device) @ self._values

    def _exchange(self, block: Tensor) -> None:
        """Sorts by the network, in place, with one row to spare."""
        space = self._buffers(block, self.num_rows + 1, block.shape[1])[:, : block.shape[1]]
        space[: self.num_rows].copy_(block)
        on_cpu = space.device.type == "cpu"
        rows = list(space.numpy() if on_cpu else space.unbind())
        # Short rows: a call of NumPy's costs a third of what one of torch's does.
        minimum, maximum = (np.minimum, np.maximum) if on_cpu else (torch.minimum, torch.maximum)
        order, spare = list(range(self.num_rows)), self.num_rows
        for low, high, wants_low, wants_high in self._network:
            one, other = order[low], order[high]
            if wants_low:
                target = spare if wants_high else one
                minimum(rows[one], rows[other], out=rows[target])
                order[low], spare = target, one if wants_high else spare
            if wants_high:
                maximum(rows[one], rows[other], out=rows[other])
        self._values, self._order = space, [order[wire] for wire in self._wires]

    def _sort(self, block: Tensor) -> None:
        """Sorts columns that are made contiguous."""
        columns = self._buffers(block, block.shape[1], self.num_rows)[: block.shape[1]]
        columns.copy_(block.T)
        if columns.device.type == "cpu":
            columns.numpy().sort(axis=1)  # NumPy's sort is vectorised, torch's is not
        else:
            columns = columns.sort(dim=1).values
        self._values, self._order = columns.T, list(range(self.num_rows))

    def _buffers(self, block: Tensor, height: int, width: int) -> Tensor:
        if self._space is None or self._space.shape[0] < height or self._space.shape[1] < width:
            self._space = block.new_zeros(height, width)
        return self._space


def _batcher(num_rows: int) -> list[tuple[int, int]]:
    """The full network; wires beyond `num_rows` would carry infinity, so they are left out."""
    pairs = []
    size = 1
    while size < num_rows:
        step = size
        while step:
            for start in range(step % size, num_rows - step, 2 * step):
                pairs += [
                    (low, low + step)
                    for low in range(start, min(start + step, num_rows - step))
                    if low // (2 * size) == (low + step) // (2 * size)
                ]
            step //= 2
        size *= 2
    return pairs
