"""Smallest maximum eigenvalue averaging (SMEA)."""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from phalanx.aggregation.aggregate import left_out
from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.checks import require_at_least

_FEW = 64  # subsets whose eigenvalues are calculated at once
_TIE = 1e-9  # relative difference of eigenvalues that rounding may make


@dataclass(frozen=True)
class SmallestMaximumEigenvalueAveraging(ByzantineBound, GeometryRule):
    """Smallest maximum eigenvalue averaging: the mean of the n - f messages that vary least.

    The mean over `argmin_{S, |S| = n - f} lambda_max(Cov(x_i, i in S))`.

    Exact, to rounding. Whether a subset spreads less than the best one known is asked of a matrix
    of f rows only, for all subsets at once; eigenvalues are calculated of the few that do.

    Scores: the squared distance to the mean of the subset. Suspects: all that were left out.
    Ties go to the subset that leaves out the largest worker ids.
    Cost: n^2 d multiply-adds in one pass, and f^3 / 6 vector operations on (n choose f) subsets:
    nothing at 15 workers, tens of milliseconds at 45 with f = 4, whoever stands out.
    Source: Allouah, Guerraoui, Gupta, Pinot, Stephan, "On the Privacy-Robustness-Utility Trilemma
    in Distributed Learning", ICML 2023, section 4. The search is not from there.

    >>> import torch
    >>> from phalanx.aggregation import SmallestMaximumEigenvalueAveraging
    >>> rule = SmallestMaximumEigenvalueAveraging(num_byzantine=1)
    >>> rule(torch.tensor([[1.0], [2.0], [3.0], [900.0]]))
    tensor([2.])
    """

    squares_scores: ClassVar[bool] = True

    max_subsets: int = 250_000
    """More subsets than this are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, max_subsets=self.max_subsets)

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine`.

        Raises:
            ValueError: if it is not below half of the workers, or there are too many subsets.
        """
        bound = super().num_tolerated(num_workers)
        if (subsets := math.comb(num_workers, bound)) > self.max_subsets:
            raise ValueError(
                f"max_subsets must be at least {subsets} to leave out {bound} of "
                f"{num_workers} workers, got {self.max_subsets}"
            )
        return bound

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Equal weights on the subset of smallest spread."""
        reached = geometry.reached().nonzero().flatten()
        num_left_out = max(0, num_byzantine - len(geometry.gram) + len(reached))
        kept = reached[_flattest(geometry.gram[reached][:, reached], num_left_out)]
        weights = torch.zeros(len(geometry.gram), dtype=torch.float64)
        weights[kept] = 1 / len(kept)
        pulls = geometry.reached_gram() @ weights
        scores = (geometry.gram.diagonal() - 2 * pulls + weights @ pulls).clamp(min=0)
        return Verdict(weights, scores, left_out(weights > 0, scores))


def _flattest(gram: Float[Tensor, "rows rows"], num_left_out: int) -> Int[Tensor, " kept"]:
    """The subset whose scatter matrix has the smallest largest eigenvalue.

    From a good subset on: of all that spread less a few are measured, the best of these is the next
    one, until none is left.
    """
    kept, best = _good(gram, num_left_out)
    possible = _possible(gram, num_left_out, best).nonzero().flatten()
    num_left_out -= len(gram) - len(possible)
    gram = _less(gram, gram[:, kept].mean(dim=1), gram[kept][:, kept].mean())[possible][:, possible]
    answer, subsets = kept[possible], _subsets(len(gram), num_left_out)
    better = subsets[:, _spreads_less(gram, subsets, best * (1 - _TIE))]
    while better.shape[1]:
        measured = torch.arange(better.shape[1]) % -(-better.shape[1] // _FEW) == 0
        now, better = better[:, measured], better[:, ~measured]
        spreads = _spreads(gram, now)
        if spreads.min() < best:
            best, answer = spreads.min().item(), _inside(now, len(gram))[spreads.argmin()]
            better = better[:, _spreads_less(gram, better, best * (1 - _TIE))]
    tied = subsets[:, _spreads_less(gram, subsets, best * (1 + _TIE))][:, :_FEW]
    ties = _inside(tied, len(gram))[_spreads(gram, tied) <= best * (1 + _TIE)]
    return possible[ties[0] if len(ties) else answer]


def _good(gram: Tensor, num_left_out: int) -> tuple[Bool[Tensor, " rows"], float]:
    """A good subset, and how much it spreads.

    It leaves out whoever is farthest along the direction in which the others spread most.
    """
    kept = torch.ones(1, len(gram), dtype=torch.bool)
    for _ in range(num_left_out):
        widest = torch.linalg.eigh(_centred(gram, kept)).eigenvectors[0, :, -1]
        kept[0, kept[0].nonzero().flatten()[widest.abs().argmax()]] = False
    values: Tensor = torch.linalg.eigvalsh(_centred(gram, kept))
    return kept[0], values[0, -1].clamp(min=0).item()


def _possible(gram: Tensor, num_left_out: int, best: float) -> Bool[Tensor, " rows"]:
    """The rows that a subset which spreads no more than the best may contain.

    Two rows alone spread half of their squared distance, and who is too far from more than
    `num_left_out` others is too far from one of the subset.
    """
    far = Geometry(gram).squared_distances() > 2 * best * (1 + 1e-6)
    return far.sum(dim=1) <= num_left_out


def _less(gram: Tensor, pulls: Tensor, norm: Tensor) -> Tensor:
    """The Gram matrix of the rows less a vector, given its products with them and itself."""
    return gram - pulls[:, None] - pulls + norm


@lru_cache(maxsize=2)
def _subsets(num_rows: int, size: int) -> Int[Tensor, "size subsets"]:
    """All subsets of a size, those of the largest ids first, one in every column."""
    shape = math.comb(num_rows, size), size
    found = itertools.chain.from_iterable(itertools.combinations(range(num_rows), size))
    return torch.from_numpy(np.fromiter(found, dtype=np.int64).reshape(shape)[::-1].T.copy())


def _spreads_less(gram: Tensor, subsets: Tensor, limit: float) -> Bool[Tensor, " subsets"]:
    """Whether the rows outside of every subset spread less than the limit in all directions.

    They do if `limit - gram` is positive definite on all offsets of theirs from a mean, which are
    the vectors that a border of ones is orthogonal to: if that bordered matrix, without the rows of
    the subset, has one negative eigenvalue. By Haynsworth's additivity of inertia, the inverse of
    the whole one, at the rows of the subset, then has all the others: a matrix of the size of a
    subset, instead of one of the size of what it leaves.
    """
    size = len(gram)
    limit = max(limit, 1e-15 * gram.diagonal().max().item(), torch.finfo(torch.float64).tiny)
    bordered = torch.ones(size + 1, size + 1, dtype=torch.float64)
    bordered[size, size] = 0
    for above in (0, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4):  # rather a subset more than a singular matrix
        at = limit * (1 + above)
        bordered[:size, :size] = torch.eye(size, dtype=torch.float64) - gram / at
        values, vectors = torch.linalg.eigh(bordered)
        if values.abs().min() > 1e-7 * values.abs().max():
            break
    inverse = vectors / values @ vectors.T
    return _num_negative(inverse, subsets) == int((values < 0).sum()) - 1


def _num_negative(matrix: Tensor, subsets: Tensor) -> Int[Tensor, " subsets"]:
    """How many negative eigenvalues the matrix has at the rows of every subset: its pivots."""
    size = len(subsets)
    parts = {(i, j): matrix[subsets[i], subsets[j]] for i in range(size) for j in range(i, size)}
    count = torch.zeros(subsets.shape[1], dtype=torch.int64)
    for k in range(size):
        pivot = parts[k, k]
        count += pivot < 0
        for i in range(k + 1, size):
            factor = parts[k, i] / pivot
            for j in range(i, size):
                parts[i, j] = parts[i, j] - factor * parts[k, j]
    return count


def _inside(subsets: Tensor, num_rows: int) -> Bool[Tensor, "subsets rows"]:
    """Which rows every subset leaves."""
    inside = torch.ones(subsets.shape[1], num_rows, dtype=torch.bool)
    return inside.scatter_(1, subsets.T, value=False)


def _centred(gram: Tensor, inside: Tensor) -> Tensor:
    """Gram matrices of subsets, each less its mean: `(subsets, kept, kept)`."""
    members = inside.nonzero()[:, 1].view(len(inside), int(inside[0].sum()))
    own = gram[members[:, :, None], members[:, None, :]]
    return (
        own
        - own.mean(dim=1, keepdim=True)
        - own.mean(dim=2, keepdim=True)
        + own.mean(dim=(1, 2), keepdim=True)
    )


def _spreads(gram: Tensor, subsets: Tensor) -> Tensor:
    """The largest eigenvalue of the scatter matrix of what every subset leaves."""
    values: Tensor = torch.linalg.eigvalsh(_centred(gram, _inside(subsets, len(gram))))
    return values[:, -1].clamp(min=0)
