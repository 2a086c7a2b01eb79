"""Bayes error from posteriors that are frequencies among k nearest neighbours (DE-kNN)."""

import numpy as np

from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.base import BayesErrorEstimator, Estimate
from phalanx.readiness.bayes_error.cover_hart import chance_error
from phalanx.readiness.bayes_error.nearest_neighbor_error import class_counts
from phalanx.readiness.bayes_error.neighbors import Metric, nearest_neighbors


class NearestNeighborPosterior(BayesErrorEstimator):
    """One minus the mean of the largest class frequency among k nearest neighbours (DE-kNN).

    The frequencies are those of the k nearest others (`leave_one_out_`), and of the sample with its
    k - 1 nearest others (`resubstitution_`); `lower_` and `upper_` are the smaller and the larger
    of the two. They are estimates, no bounds: the maximum of noisy frequencies is too large, so
    that both are often below the Bayes error.

    Cost: O(n^2 d) time; memory of `max_bytes`.
    Source: Fukunaga, Hostetler, "k-Nearest-Neighbor Bayes-Risk Estimation", 1975.

    >>> from sklearn.datasets import load_digits
    >>> found = NearestNeighborPosterior(k=5).fit(*load_digits(return_X_y=True))
    >>> found.resubstitution_ < found.leave_one_out_
    True
    """

    def __init__(
        self,
        k: int = 10,
        metric: Metric = "euclidean",
        num_classes: int | None = None,
        max_bytes: int = 2**28,
    ) -> None:
        """Stores the parameters.

        Args:
            k: points by which a posterior is estimated; at least 2.
            metric: euclidean or cosine.
            num_classes: classes that there are; those of y if not given.
            max_bytes: size of the blocks of distances.
        """
        self.k = k
        self.metric = metric
        self.num_classes = num_classes
        self.max_bytes = max_bytes

    def estimate(self, points: Array, labels: Array, num_classes: int) -> Estimate:
        """See `BayesErrorEstimator.estimate`."""
        if not 2 <= self.k < len(labels):
            raise ValueError(f"k must be from 2 to below n_samples={len(labels)}, got {self.k}")
        _, found = nearest_neighbors(points, None, self.k, self.metric, max_bytes=self.max_bytes)
        others = labels[found]
        with_itself = np.column_stack([labels, others[:, :-1]])
        chance = chance_error(num_classes)
        errors = [
            min(1 - float(class_counts(voters, num_classes).max(axis=1).mean()) / self.k, chance)
            for voters in (others, with_itself)
        ]
        self.leave_one_out_, self.resubstitution_ = errors
        return Estimate(min(errors), max(errors))
