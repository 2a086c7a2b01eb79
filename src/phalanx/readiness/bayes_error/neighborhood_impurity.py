"""Bayes error from the disagreement of labels within neighbourhoods (1NN-kNN)."""

import numpy as np

from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.base import BayesErrorEstimator, Estimate
from phalanx.readiness.bayes_error.cover_hart import chance_error, cover_hart
from phalanx.readiness.bayes_error.nearest_neighbor_error import class_counts
from phalanx.readiness.bayes_error.neighbors import Metric, nearest_neighbors


class NeighborhoodImpurity(BayesErrorEstimator):
    """Asymptotic 1NN risk from k points (1NN-kNN): share of unequal pairs in each neighbourhood.

    A neighbourhood is a sample and its k - 1 nearest others; the upper estimate is the mean over
    neighbourhoods of `sum_c k_c (k - k_c) / (k (k - 1))`, an unbiased estimate of
    `1 - sum_c eta_c^2` where the posterior is constant; the lower one is its Cover-Hart map. With
    k = 2 it is the leave-one-out error of the nearest neighbour.

    Cost: O(n^2 d) time; memory of `max_bytes`.
    Source: Devijver, "A Multiclass, k-NN Approach to Bayes Risk Estimation", 1985.

    >>> from sklearn.datasets import load_digits
    >>> round(NeighborhoodImpurity(k=2).fit(*load_digits(return_X_y=True)).upper_, 4)
    0.0117
    """

    def __init__(
        self,
        k: int = 5,
        metric: Metric = "euclidean",
        num_classes: int | None = None,
        max_bytes: int = 2**28,
    ) -> None:
        """Stores the parameters.

        Args:
            k: points of a neighbourhood, the sample itself among them; at least 2.
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
        if not 2 <= self.k <= len(labels):
            raise ValueError(f"k must be from 2 to n_samples={len(labels)}, got {self.k}")
        _, found = nearest_neighbors(
            points, None, self.k - 1, self.metric, max_bytes=self.max_bytes
        )
        counts = class_counts(np.column_stack([labels, labels[found]]), num_classes)
        pairs = (counts * (self.k - counts)).sum(axis=1) / (self.k * (self.k - 1))
        risk = float(pairs.mean())
        chance = chance_error(num_classes)
        return Estimate(float(cover_hart(risk, num_classes)), min(risk, chance))
