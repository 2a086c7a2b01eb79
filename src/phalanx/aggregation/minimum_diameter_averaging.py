"""Minimum-diameter averaging (MDA)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.aggregate import left_out
from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.krum import krum_scores
from phalanx.vertex_cover import bit_sets, coverable


@dataclass(frozen=True)
class MinimumDiameterAveraging(ByzantineBound, GeometryRule):
    """Minimum-diameter averaging: the mean of the n - f messages that lie closest together.

    The mean over `argmin_{S, |S| = n - f} max_{i, j in S} ||x_i - x_j||`.

    Exact, without trying all subsets: a diameter is possible if f messages cover all pairs that are
    farther apart, and the smallest possible one is found by halving the list of distances.

    Scores: the sum of squared distances to the nearest n - f - 1 others. Suspects: all left out.
    Of several subsets with the same diameter (which happens often: either end of the longest pair
    may go), the one that keeps the best scores; ties of scores go to the smallest worker id.
    Cost: n^2 d multiply-adds in one pass; the search takes milliseconds, though in the worst case
    it grows exponentially with f.
    Source: El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, "Genuinely Distributed Byzantine Machine
    Learning", PODC 2020, section 3; Rousseeuw, "Multivariate Estimation with High Breakdown Point",
    Mathematical Statistics and Applications B, 1985. The search is not from there.

    >>> import torch
    >>> from phalanx.aggregation import MinimumDiameterAveraging
    >>> MinimumDiameterAveraging(num_byzantine=1)(torch.tensor([[1.0], [2.0], [3.0], [900.0]]))
    tensor([2.])
    """

    squares_scores: ClassVar[bool] = True

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Equal weights on the subset of smallest diameter."""
        squared = geometry.squared_distances()
        scores = krum_scores(squared, num_byzantine, "byzfl")
        kept = tightest(squared, num_byzantine, scores.argsort(stable=True).tolist())
        weights = torch.zeros_like(scores)
        weights[kept] = 1 / len(kept)
        return Verdict(weights, scores, left_out(weights > 0, scores))


def tightest(
    squared_distances: Float[Tensor, "rows rows"], num_left_out: int, order: list[int]
) -> list[int]:
    """The subset of smallest diameter; of several, the first that an ordered choice arrives at."""
    radii = squared_distances.unique().tolist()
    low, high = 0, len(radii) - 1
    while low < high:
        middle = (low + high) // 2
        if coverable(*bit_sets(squared_distances > radii[middle]), num_left_out):
            high = middle
        else:
            low = middle + 1
    far, undecided = bit_sets(squared_distances > radii[low])
    num_kept = len(order) - num_left_out
    kept: list[int] = []
    for row in order:
        if len(kept) == num_kept:
            break
        if not undecided >> row & 1:
            continue
        undecided &= ~(1 << row)
        against = far[row] & undecided
        if coverable(far, undecided & ~against, num_left_out - against.bit_count()):
            kept.append(row)
            undecided &= ~against
            num_left_out -= against.bit_count()
        else:
            num_left_out -= 1
    return sorted(kept)
