"""Bayes error from edges of the minimum spanning tree that join classes (GHP)."""

import numpy as np

from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.base import BayesErrorEstimator, Estimate
from phalanx.readiness.bayes_error.cover_hart import chance_error, cover_hart


class HenzePenrose(BayesErrorEstimator):
    """Generalised Henze-Penrose bounds: the share of tree edges that join two classes (GHP).

    The upper estimate is the share of edges of the Euclidean minimum spanning tree whose ends have
    different labels, which converges to the asymptotic 1NN risk; the lower one is its Cover-Hart
    map.

    Cost: O(n^2 d) time; O(n d) memory.
    Source: Sekeh, Oselio, Hero, "Learning to Bound the Multi-Class Bayes Error", 2020.

    >>> import numpy as np
    >>> points = np.array([[0.0], [1.0], [2.5], [3.0]])
    >>> round(HenzePenrose().fit(points, [0, 0, 1, 1]).upper_, 4)
    0.25
    """

    def __init__(self, num_classes: int | None = None) -> None:
        """Stores the parameters.

        Args:
            num_classes: classes that there are; those of y if not given.
        """
        self.num_classes = num_classes

    def estimate(self, points: Array, labels: Array, num_classes: int) -> Estimate:
        """See `BayesErrorEstimator.estimate`."""
        parents = minimum_spanning_tree(points)
        crossing = (labels[1:] != labels[parents[1:]]).sum()
        share = float(crossing) / len(labels)  # of n, as in the source, for n - 1 edges
        chance = chance_error(num_classes)
        return Estimate(float(cover_hart(share, num_classes)), min(share, chance))


def minimum_spanning_tree(points: Array) -> Array:
    """Parent of each point in the Euclidean minimum spanning tree, `(n,)`; that of the root 0 is 0.

    Prim's algorithm, by one row of distances at a time. Distances are summed from differences, so
    that duplicates are joined by edges of length 0; ties go to the lowest index.

    Args:
        points: `(n, d)`, finite.
    """
    rest = np.asarray(points, dtype=np.float64)
    parents = np.zeros(len(rest), dtype=np.int64)
    nearest = np.full(len(rest), np.inf)
    outside = np.ones(len(rest), dtype=bool)
    current = 0
    for _ in range(len(rest) - 1):
        outside[current] = False
        distances = np.square(rest - rest[current]).sum(axis=1)
        closer = outside & (distances < nearest)
        parents[closer] = current
        nearest[closer] = distances[closer]
        current = int(np.where(outside, nearest, np.inf).argmin())
    return parents
