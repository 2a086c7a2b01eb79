"""Budget split between singular vectors and entries, at the least variance."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.compression.atoms import entry_bits
from phalanx.compression.selection import reached

_BLOCK = 1 << 16  # entries at a time: they stay in the cache
_STEPS = 30  # towards a level
_ROUGHLY = 10.0  # bits of an entry, before it is known how many are sent


class Levels(NamedTuple):
    """From which size on atoms are certain.

    Attributes:
        vectors: the singular value from which on.
        entries: the magnitude from which on.
    """

    vectors: float
    entries: float


class Extent(NamedTuple):
    """How large a tensor's entries are.

    Attributes:
        total: sum of the magnitudes.
        largest: of the magnitudes.
        norm: root of the sum of the squares.
    """

    total: float
    largest: float
    norm: float


def extent(x: Float[Tensor, "..."]) -> Extent:
    """Of a tensor that is not empty, in one pass."""
    flat = x.reshape(-1)
    room = flat.new_empty(min(_BLOCK, flat.numel()))
    found = []
    for block in flat.split(_BLOCK):
        magnitudes = torch.abs(block, out=room[: len(block)])
        norm = torch.linalg.vector_norm(magnitudes)
        found.append(torch.stack([magnitudes.sum(), magnitudes.amax(), norm]))
    sums, largest, norms = torch.stack(found).double().unbind(1)
    return Extent(float(sums.sum()), float(largest.max()), float(norms.square().sum().sqrt()))


def share_budget(
    sizes: Float[Tensor, " atoms"],
    rest: Float[Tensor, "rows columns"],
    whole: Extent,
    budget: float,
) -> Levels:
    """The levels at which vectors and entries cost the budget, with the least variance.

    With costs `c` the probabilities of least variance are `min(1, size / (tau sqrt(c)))`.

    Args:
        sizes: of the atoms of rank one.
        rest: the matrix whose entries are the other atoms.
        whole: its extent.
        budget: in pairs of vectors, whose bytes entries may take instead.
    """
    value = 8 * rest.dtype.itemsize  # bits
    pair = value * sum(rest.shape)
    spending = _Spending(sizes, rest, whole, value / pair)
    bits = _ROUGHLY
    for _ in range(3):  # how long positions are depends on how many there are
        cost = bits / pair
        level = spending.level(cost, budget)
        if not level:
            break
        border = level * math.sqrt(cost)
        total, certain = spending.entries(border)
        numbers = (total / border, float(certain))
        if any(numbers):
            bits = sum(one * entry_bits(rest.numel(), float(one)) for one in numbers) / sum(numbers)
    return Levels(level, level * math.sqrt(cost))


class _Spending:
    """What is spent on average at a level, in pairs of vectors."""

    def __init__(self, sizes: Tensor, rest: Tensor, whole: Extent, value: float) -> None:
        """With the cost of an entry's value, which is sent where the entry is certain."""
        self._sizes, self._rest, self._value = sizes.double(), rest.reshape(-1), value
        self._total, self._largest = whole.total, whole.largest
        self._large, self._known = self._rest[:0].double(), self._largest

    def entries(self, level: float) -> tuple[float, int]:
        """Magnitudes of the entries that are not certain, added up; and how many are certain."""
        if self._largest <= level:
            return self._total, 0
        if level < self._known:  # somewhat more are looked up, as levels fall
            self._known = level / 2
            border = self._rest.new_tensor(self._known)
            blocks = (block.abs() for block in self._rest.split(_BLOCK))
            self._large = torch.cat([block[reached(block, border)] for block in blocks]).double()
        certain = self._large[self._large > level]
        return self._total - float(certain.sum()), len(certain)

    def level(self, cost: float, budget: float) -> float:
        """The level at which the budget is spent; 0 if it is enough for everything."""
        root, dense = math.sqrt(cost), cost + self._value
        least = int((self._sizes > 0).sum())
        if least + dense * self._rest.numel() <= budget or (
            least + dense * self._total / max(self._largest, 1e-300) <= budget
            and least + dense * int(self._rest.count_nonzero()) <= budget
        ):
            return 0.0
        level = (float(self._sizes.sum()) + root * self._total) / budget
        low, high = 0.0, math.inf
        for _ in range(_STEPS):
            total, certain = self.entries(level * root)
            above = self._sizes > level
            sure = int(above.sum()) + dense * certain
            free = float(self._sizes[~above].sum()) + root * total
            share = (sure + free / level) / budget
            low, high = (level, high) if share > 1 else (low, level)
            if 0.99 <= share <= 1.001:
                return level
            # The first would be the answer if as many atoms were certain there; it overshoots, as
            # their values are sent from one level on.
            other = free / (budget - sure) if sure < budget else math.inf
            level = (level + other) / 2 if certain else other
            if not low < level < high:
                level = 2 * low if math.isinf(high) else (low + high) / 2
        return high if math.isfinite(high) else level
