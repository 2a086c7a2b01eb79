"""Randomised singular vectors for ATOMO, with the rest entry by entry."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.bits import empty
from phalanx.checks import require_at_least
from phalanx.compression.atoms import (
    Budget,
    Bytes,
    Entries,
    Prepared,
    SingularVectors,
    pack_chosen,
)
from phalanx.compression.base import Shape
from phalanx.compression.draws import Uniforms
from phalanx.compression.eigenvectors import eigenvectors
from phalanx.compression.message import Part
from phalanx.compression.sampling import Sampling, probabilities, sample
from phalanx.compression.selection import reached
from phalanx.compression.spending import Extent, Levels, extent, share_budget
from phalanx.floats import power_of_two, working
from phalanx.randomness import generator as seeded_by

_BLOCK = 1 << 16  # entries at a time: they stay in the cache
_SMALL, _LARGE = 1e-12, 1e12  # products of values of such norms are normal float32 numbers
_ENTRIES = Entries()
_BITS = 10  # an entry's, roughly: enough to tell when to stop looking for vectors
_GAUSSIAN = 0.8  # mean magnitude of normal numbers of variance 1

Matrix = Float[Tensor, "rows columns"]


class Split(NamedTuple):
    """A matrix as a few atoms of rank one and what they leave.

    Attributes:
        left: `(atoms, rows)`; with `right`, the atoms. One of the two is orthonormal.
        right: `(atoms, columns)`.
        rest: `(rows, columns)`: the matrix less all of the atoms, whatever they are.
        whole: the extent of the rest.
        scale: what all of this has to be multiplied by.
    """

    left: Tensor
    right: Tensor
    rest: Matrix
    whole: Extent
    scale: float

    @property
    def sizes(self) -> Float[Tensor, " atoms"]:
        """Norms of the atoms."""
        return _norms(self.left, self.right)


@dataclass(frozen=True)
class RandomizedSingularVectors(SingularVectors):
    """The leading singular vectors, by random projections, and the entries of what they leave.

    No vector has to be exact: the rest is the matrix less the vectors that were found, and its
    entries are drawn like any atoms, so nothing is missing on average. Vectors and entries share
    the budget, by what each costs in bytes, so that their variance is least. Where the spectrum is
    flat, entries are the better atoms, and where it falls, vectors are: the variance is then about
    that of exact singular vectors in as many bytes, or several times below. It is above, by up to a
    third, for budgets so large that exact vectors leave little.
    Vectors are sought `rank` at a time for as long as they are worth their bytes. A matrix whose
    smaller side has no more than twice `rank` values is decomposed exactly.
    Wire: two vectors an atom; and entries as `Entries` has them.
    Cost: `2 * power_iterations + 1` thin products for each `rank` vectors, one more if some of them
    are kept, and a few passes.
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
        require_at_least(1, rank=self.rank)
        require_at_least(1, power_iterations=self.power_iterations)

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Left vectors, right vectors; the entries."""
        return *super().layout(shape, dtype), *_ENTRIES.layout(shape, dtype)

    def prepare(self, x: Tensor, budget: Budget | Bytes) -> Prepared:
        """The vectors that are worth their bytes, and the entries of the rest.

        Vectors are drawn as the sampling says, entries each by itself.
        """
        if isinstance(budget, Bytes):
            budget = self.affordable(budget.number, tuple(x.shape), x.dtype)
        split = self.split(x, budget)
        levels = self._levels(split, budget)
        sizes = split.sizes

        def spread() -> float:
            found = 0.0
            for one, level in zip((sizes, split.rest.abs()), levels, strict=True):
                wide = one.double()
                found += float((wide * (level - wide).clamp_(min=0)).sum())
            return found * (split.scale / float(power_of_two(x))) ** 2

        def draw(sampling: Sampling, generator: torch.Generator | None) -> tuple[Tensor, ...]:
            return self._draw(split, levels, sampling, generator)

        return Prepared(spread, draw)

    def _draw(
        self,
        split: Split,
        levels: Levels,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, ...]:
        sizes = split.sizes
        tau = sizes.new_tensor(levels.vectors)
        kept = sample(probabilities(sizes, tau), sampling, generator)
        left, right = self.pack((split.left, split.right), kept, sizes, tau)
        flat = split.rest.reshape(-1)
        chosen, values = _drawn(flat, levels.entries, generator)
        limits = torch.finfo(flat.dtype)
        entries = list(pack_chosen(chosen, values, flat.new_tensor(levels.entries), len(flat)))
        for place in (0, -1):  # magnitude and values
            entries[place] = (entries[place] * split.scale).clamp_(limits.min, limits.max)
        # The factors share what one of them may have no room for.
        root = math.sqrt(split.scale)
        return *((one * root).clamp_(limits.min, limits.max) for one in (left, right)), *entries

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
        """Finds vectors for as long as they are worth their bytes."""
        rank = self.rank if isinstance(budget, str) else max(self.rank, math.ceil(2 * budget))
        matrix = x.reshape(self.sides(tuple(x.shape))).to(working(x.dtype))
        norm, scale = float(torch.linalg.vector_norm(matrix)), 1.0
        if not _SMALL < norm < _LARGE and (largest := float(matrix.abs().max())):
            matrix, scale = matrix / largest, largest
            norm = float(torch.linalg.vector_norm(matrix))
        smaller = min(matrix.shape)
        if smaller <= 2 * rank:
            return self._exact(matrix, scale)
        root = math.sqrt(_BITS / (8 * matrix.dtype.itemsize * sum(matrix.shape)))
        lefts, rights = ([matrix.new_empty(0, side)] for side in matrix.shape)
        rest = matrix
        for turn in range(smaller // (2 * rank)):
            basis, sizes = _leading(rest, rank, self.power_iterations, turn)
            count = _worth(sizes, norm, _GAUSSIAN * math.sqrt(matrix.numel()) * root)
            if count:
                left, right = _atoms(basis[:count], rest)
                room = empty(matrix.numel(), matrix).view_as(matrix) if rest is matrix else rest
                rest = torch.addmm(rest, left.T, right, alpha=-1, out=room)
                lefts.append(left)
                rights.append(right)
            whole = extent(rest)
            norm = whole.norm
            # What one more vector of the last size would take away from the entries' part of the
            # variance's root, if it took from all entries alike, has to be more than that size.
            if count < rank or float(sizes[-1]) * root * whole.total <= 2 * norm**2:
                return Split(torch.cat(lefts), torch.cat(rights), rest, whole, scale)
        return self._exact(matrix, scale)

    def _exact(self, matrix: Matrix, scale: float) -> Split:
        """All singular vectors, which leave what rounding leaves; that is dropped."""
        exact = SingularVectors()
        _, (left, right) = exact.analyse(matrix)
        return Split(left, right, torch.zeros_like(matrix), Extent(0.0, 0.0, 0.0), scale)

    def _levels(self, split: Split, budget: Budget) -> Levels:
        if not isinstance(budget, str):
            return share_budget(split.sizes, split.rest, split.whole, budget)
        level = float(self.level(split.sizes, budget))
        return Levels(level, level)


def _leading(
    matrix: Matrix, rank: int, power_iterations: int, turn: int
) -> tuple[Float[Tensor, "rank smaller"], Float[Tensor, " rank"]]:
    """About the `rank` leading singular vectors of the smaller side, and singular values."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    source = seeded_by("range", turn, *matrix.shape)
    basis = torch.randn(rank, len(wide), generator=source).to(wide)
    images = basis.T
    for _ in range(power_iterations):
        images = wide @ torch.linalg.qr((basis @ wide).T).Q
        images = images @ eigenvectors(images.T @ images).flip(1)
        basis = torch.linalg.qr(images).Q.T.contiguous()
    sizes: Tensor = torch.linalg.vector_norm(images, dim=0)
    return basis, sizes


def _atoms(
    basis: Float[Tensor, "kept smaller"], matrix: Matrix
) -> tuple[Float[Tensor, "kept rows"], Float[Tensor, "kept columns"]]:
    """The matrix's part in a space: left and right vectors, one side with the sizes in it."""
    if matrix.shape[0] <= matrix.shape[1]:
        return basis, basis @ matrix
    return basis @ matrix.T, basis


def _worth(sizes: Float[Tensor, " found"], norm: float, factor: float) -> int:
    """How many of the vectors to keep, so that the root of the variance is least.

    That is the sum of the sizes and the entries' part, in proportion to the norm of what is left.
    """
    kept = torch.nn.functional.pad(sizes.double(), (1, 0))
    left = (norm**2 - kept.square().cumsum(0)).clamp_(min=0).sqrt_()
    return int((kept.cumsum(0) + factor * left).argmin())


def _drawn(
    flat: Float[Tensor, " dim"], level: float, generator: torch.Generator | None
) -> tuple[Int64[Tensor, " chosen"], Float[Tensor, " chosen"]]:
    """Positions, each with the probability `min(1, magnitude / level)`, and the values there."""
    draws = Uniforms(flat.dtype, generator, flat.device)
    size = _BLOCK if flat.device.type == "cpu" else flat.numel()
    magnitudes, drawn = flat.new_empty(2, min(size, flat.numel())).unbind()
    places, values = [], []
    for start in range(0, flat.numel(), size):
        block = flat[start : start + size]
        border = draws.take(len(block), drawn[: len(block)], top=level)
        found = reached(torch.abs(block, out=magnitudes[: len(block)]), border, strictly=True)
        values.append(block[found])
        places.append(found.add_(start))
    return torch.cat(places), torch.cat(values)


def _norms(
    left: Float[Tensor, "atoms rows"], right: Float[Tensor, "atoms columns"]
) -> Float[Tensor, " atoms"]:
    """Of atoms of rank one."""
    sizes: Tensor = torch.linalg.vector_norm(left, dim=1) * torch.linalg.vector_norm(right, dim=1)
    return sizes
