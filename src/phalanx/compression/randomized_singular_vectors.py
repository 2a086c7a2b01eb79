"""Singular vectors as far as they pay, found by random projections; the rest entry by entry."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from phalanx.compression.atoms import Budget, Entries, SingularVectors, entry_bits, pack_chosen
from phalanx.compression.base import Shape, working
from phalanx.compression.bits import empty
from phalanx.compression.draws import Uniforms
from phalanx.compression.message import Part
from phalanx.compression.sampling import Sampling, probabilities, sample
from phalanx.randomness import generator as seeded_by

_BLOCK = 1 << 16  # entries at a time: they stay in the cache
_SMALL, _LARGE = 1e-12, 1e12  # products of values in between are normal float32 numbers
_ENTRIES = Entries()
_BITS = 10  # an entry's, roughly: enough to tell when to stop looking for vectors
_STEPS = 30  # towards a level
_NEGLIGIBLE = 0.003  # share of the whole below which it does not matter how the rest is sent

Matrix = Float[Tensor, "rows columns"]


class Levels(NamedTuple):
    """From which size on atoms are certain.

    Attributes:
        vectors: the singular value from which on.
        entries: the magnitude from which on.
    """

    vectors: float
    entries: float


class Split(NamedTuple):
    """A matrix as a few atoms of rank one and what they leave.

    Attributes:
        left: `(atoms, rows)`; with `right`, the atoms. One of the two is orthonormal.
        right: `(atoms, columns)`.
        rest: `(rows, columns)`: the matrix less all of the atoms, whatever they are.
        scale: what all of this has to be multiplied by.
    """

    left: Tensor
    right: Tensor
    rest: Matrix
    scale: float

    @property
    def sizes(self) -> Float[Tensor, " atoms"]:
        """Norms of the atoms."""
        lefts: Tensor = torch.linalg.vector_norm(self.left, dim=1)
        rights: Tensor = torch.linalg.vector_norm(self.right, dim=1)
        return lefts * rights


@dataclass(frozen=True)
class RandomizedSingularVectors(SingularVectors):
    """The leading singular vectors, by random projections, and the entries of what they leave.

    No vector has to be exact: the rest is the matrix less the vectors that were found, and its
    entries are drawn like any atoms, so nothing is missing on average. Vectors and entries share
    the budget, by what each costs in bytes, so that their variance is least. Where the spectrum is
    flat, entries are the better atoms, and where it falls, vectors are: the variance is then about
    that of exact singular vectors in as many bytes, or several times below. It is above, by up to
    15 %, for matrices of nearly low rank, whose vectors exact decompositions send almost all.
    Vectors are sought `rank` at a time for as long as they are worth their bytes. A matrix whose
    smaller side has no more than four times `rank` values is decomposed exactly.
    Wire: two vectors an atom; and entries as `Entries` has them.
    Cost: `2 * power_iterations + 2` thin products for each `rank` vectors, and a few passes.
    Source: Halko, Martinsson, Tropp, "Finding Structure with Randomness: Probabilistic Algorithms
    for Constructing Approximate Matrix Decompositions", SIAM Review 2011, algorithm 4.4.

    >>> import torch
    >>> from phalanx.compression import Atomo, RandomizedSingularVectors
    >>> x = torch.outer(torch.arange(90.0), torch.arange(80.0))
    >>> compressor = Atomo(RandomizedSingularVectors(), budget=2.0)
    >>> message = compressor.encode(x, torch.Generator().manual_seed(0))
    >>> torch.allclose(compressor.decode(message), x, atol=0.1)  # a matrix of rank one
    True
    """

    rank: int = 16
    """Vectors that are sought at a time."""
    power_iterations: int = 1
    """Products with the matrix and its transpose before: more find vectors more exactly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.power_iterations < 1:
            raise ValueError(f"power_iterations must be at least 1, got {self.power_iterations}")

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Left vectors, right vectors; the entries."""
        return *super().layout(shape, dtype), *_ENTRIES.layout(shape, dtype)

    def sparsify(
        self, x: Tensor, budget: Budget, sampling: Sampling, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """Vectors are drawn as `sampling` says, entries each by itself."""
        split = self.split(x, budget)
        levels = self._levels(split, budget, tuple(x.shape), x.dtype)
        sizes = split.sizes
        tau = sizes.new_tensor(levels.vectors)
        kept = sample(probabilities(sizes, tau), sampling, generator)
        left, right = self.pack((split.left, split.right), kept, sizes, tau)
        flat = split.rest.reshape(-1)
        chosen = _drawn(flat, levels.entries, generator)
        limits = torch.finfo(flat.dtype)
        entries = list(pack_chosen(flat, chosen, flat.new_tensor(levels.entries)))
        for place in (0, -1):  # magnitude and values
            entries[place] = (entries[place] * split.scale).clamp_(limits.min, limits.max)
        # The factors share what one of them may have no room for.
        root = math.sqrt(split.scale)
        return *((one * root).clamp_(limits.min, limits.max) for one in (left, right)), *entries

    def variance(self, x: Tensor, budget: Budget) -> float:
        """The expected squared error, exactly."""
        split = self.split(x, budget)
        levels = self._levels(split, budget, tuple(x.shape), x.dtype)
        pairs = zip((split.sizes, split.rest.abs()), levels, strict=True)
        found = 0.0
        for sizes, level in pairs:
            wide = sizes.double()
            found += float((wide * (level - wide).clamp_(min=0)).sum())
        return found * split.scale**2

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The sum of the outer products, and the entries."""
        rest = _ENTRIES.unpack(parts[2:], shape, dtype)
        rows, columns = self.sides(shape)
        left, right = parts[0].view(-1, rows), parts[1].view(-1, columns)
        return rest.view(rows, columns).addmm_(left.T, right).nan_to_num_()

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """As singular vectors and entries say."""
        super().check(parts[:2], shape, dtype)
        _ENTRIES.check(parts[2:], shape, dtype)

    def split(self, x: Tensor, budget: Budget = 3.0) -> Split:
        """Finds vectors for as long as they are worth their bytes, twice the budget at least."""
        rank = self.rank if isinstance(budget, str) else max(self.rank, math.ceil(2 * budget))
        matrix = x.reshape(self.sides(tuple(x.shape))).to(working(x.dtype))
        low, high = torch.aminmax(matrix)
        scale = max(-float(low), float(high))
        if _SMALL < scale < _LARGE or not scale:
            scale = 1.0
        else:
            matrix = matrix / scale
        smaller = min(matrix.shape)
        if smaller <= 4 * rank:
            return self._exact(matrix, scale)
        total = _squares(matrix)
        cost = _BITS / (8 * matrix.dtype.itemsize * sum(matrix.shape))
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        rest, covered, found = matrix, 0.0, 0.0
        while len(lefts) * rank <= smaller // 2:
            left, right = _leading(rest, rank, self.power_iterations, len(lefts))
            room = empty(matrix.numel(), matrix).view_as(matrix)
            rest = torch.sub(rest, torch.mm(left, right.T, out=room), out=room)
            sizes = torch.linalg.vector_norm(left, dim=0) * torch.linalg.vector_norm(right, dim=0)
            lefts.append(left.T)
            rights.append(right.T)
            covered, found = covered + _squares(sizes), found + float(sizes.sum())
            # Entries' part of the variance's root, if they were Gaussian, and what one more vector
            # of the last size would take away from it.
            norm = math.sqrt(max(total - covered, 0.0))
            part = 0.8 * norm * math.sqrt(cost * matrix.numel())
            last = float(sizes[-1])
            if part <= _NEGLIGIBLE * found or part * last <= 2 * norm * norm:
                return Split(torch.cat(lefts), torch.cat(rights), rest, scale)
        return self._exact(matrix, scale)

    def _exact(self, matrix: Matrix, scale: float) -> Split:
        """All singular vectors, which leave what rounding leaves; that is dropped."""
        exact = SingularVectors()
        _, (left, right) = exact.analyse(matrix)
        return Split(left, right, torch.zeros_like(matrix), scale)

    def _levels(self, split: Split, budget: Budget, shape: Shape, dtype: torch.dtype) -> Levels:
        """The levels at which vectors and entries cost the budget, with the least variance.

        With costs `c` the probabilities of least variance are `min(1, size / (tau sqrt(c)))`.
        """
        sizes, rest = split.sizes, split.rest
        if isinstance(budget, str):
            level = float(self.level(sizes, budget))
            return Levels(level, level)
        pair = 8 * rest.dtype.itemsize * sum(rest.shape)  # bits
        spending = _Spending(sizes, rest, 8 * rest.dtype.itemsize / pair)
        count, level, root = float(rest.numel()), 0.0, 0.0
        for _ in range(3):  # how long positions are depends on how many are sent
            cost = entry_bits(rest.numel(), count) / pair
            level, root = spending.level(cost, budget), math.sqrt(cost)
            count = spending.entries(level * root)[0] if level else count
        return Levels(level, level * root)


class _Spending:
    """What is spent on average at a level, in pairs of vectors."""

    def __init__(self, sizes: Float[Tensor, " atoms"], rest: Matrix, value: float) -> None:
        """With the cost of an entry's value, which is sent where the entry is certain."""
        self._sizes, self._rest, self._value = sizes.double(), rest, value
        self._total, self._largest = _sum_and_largest(rest)

    def entries(self, level: float) -> tuple[float, int]:
        """Entries sent on average, and how many of them are certain."""
        if self._largest <= level:
            return self._total / level, 0
        magnitudes = self._rest.abs()
        certain = int((magnitudes > level).sum())
        return float((magnitudes / level).clamp_(max=1).sum(dtype=torch.float64)), certain

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
            number, certain = self.entries(level * root)
            vectors = float((self._sizes / level).clamp_(max=1).sum())
            share = (vectors + cost * number + self._value * certain) / budget
            low, high = (level, high) if share > 1 else (low, level)
            if 0.99 <= share <= 1.001:
                return level
            # Without certain atoms this is the answer; with such it is a step towards it.
            level *= share
            if not low < level < high:
                level = 2 * low if math.isinf(high) else (low + high) / 2
        return high if math.isfinite(high) else level


def _leading(
    matrix: Matrix, rank: int, power_iterations: int, turn: int
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "columns rank"]]:
    """About the `rank` leading singular vectors, one side with the singular values in it."""
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    source = seeded_by("range", turn, *matrix.shape)
    basis = torch.randn(tall.shape[1], rank, generator=source).to(tall)
    for _ in range(power_iterations):
        basis = torch.linalg.qr(tall.T @ (tall @ basis)).Q
    images = tall @ basis
    turned = torch.linalg.eigh(images.T @ images).eigenvectors.flip(1)
    basis, images = basis @ turned, images @ turned
    return (basis, images) if wide else (images, basis)


def _drawn(
    flat: Float[Tensor, " dim"], level: float, generator: torch.Generator | None
) -> Int64[Tensor, " chosen"]:
    """Positions, each with the probability `min(1, magnitude / level)`."""
    draws = Uniforms(flat.numel(), flat.dtype, generator, flat.device)
    size = _BLOCK if flat.device.type == "cpu" else flat.numel()
    magnitudes, drawn = flat.new_empty(2, min(size, flat.numel())).unbind()
    pieces = []
    for start in range(0, flat.numel(), size):
        block = flat[start : start + size]
        border = draws.part(start, start + len(block), drawn[: len(block)]).mul_(level)
        reach = border < torch.abs(block, out=magnitudes[: len(block)])
        pieces.append(_places(reach) + start)
    return torch.cat(pieces)


def _places(mask: Bool[Tensor, " dim"]) -> Int64[Tensor, " places"]:
    """Where it holds."""
    if mask.device.type != "cpu":
        return mask.nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # twice as fast


def _sum_and_largest(matrix: Matrix) -> tuple[float, float]:
    """Of the magnitudes."""
    flat = matrix.reshape(-1)
    room = flat.new_empty(min(_BLOCK, flat.numel()))
    pairs = []
    for block in flat.split(_BLOCK):
        magnitudes = torch.abs(block, out=room[: len(block)])
        pairs.append((magnitudes.sum(), magnitudes.amax()))
    sums, largest = (torch.stack(one) for one in zip(*pairs, strict=True))
    return float(sums.sum(dtype=torch.float64)), float(largest.max())


def _squares(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) ** 2
