"""Bayes error from the limit of the kNN error as samples grow (kNN-Extrapolate)."""

from typing import Literal

import numpy as np
from scipy.optimize import least_squares
from sklearn.utils import check_random_state

from phalanx.checks import require_at_least, require_one_of
from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.base import BayesErrorEstimator, Estimate
from phalanx.readiness.bayes_error.cover_hart import chance_error, neighbor_lower_bound
from phalanx.readiness.bayes_error.intrinsic_dimension import two_nearest_dimension
from phalanx.readiness.bayes_error.nearest_neighbor_error import held_out, vote_errors
from phalanx.readiness.bayes_error.neighbors import Metric, NeighborSearch

_PARTS = 10


class NearestNeighborExtrapolation(BayesErrorEstimator):
    """Limit of the kNN error, by fitting its decrease over ten sizes of the training set.

    `s + sum_i b_i n^(-(i + 2) / d)` for i = 0 .. order - 3 is fitted by least squares with s in
    [0, 1 - 1 / C] and b in [-1, 1]; s is the upper estimate, and its lower bound the lower one.
    With d above about 30 the powers hardly differ and the fit says little: see `condition_`, the
    condition number of the fit, and `reliable_`, which is False where s ends at a bound.

    Cost: O(n^2 d) time; memory of `max_bytes`.
    Source: Snapp, Xu, "Estimating the Bayes Risk from Sample Data", 1996.

    >>> from sklearn.datasets import load_digits
    >>> found = NearestNeighborExtrapolation().fit(*load_digits(return_X_y=True))
    >>> found.upper_ < 0.02
    True
    """

    def __init__(
        self,
        k: int = 1,
        metric: Metric = "euclidean",
        dimension: Literal["ambient", "intrinsic"] = "ambient",
        order: int = 5,
        test_fraction: float = 0.2,
        num_classes: int | None = None,
        random_state: int | None = 0,
        max_bytes: int = 2**28,
    ) -> None:
        """Stores the parameters.

        Args:
            k: neighbours that vote.
            metric: euclidean or cosine.
            dimension: d of the exponents: that of the features, or of the two-NN estimate.
            order: two more than there are powers; at least 3.
            test_fraction: share of the rows by which errors are measured.
            num_classes: classes that there are; those of y if not given.
            random_state: randomness of the rows held out and of their order.
            max_bytes: size of the blocks of distances.
        """
        self.k = k
        self.metric = metric
        self.dimension = dimension
        self.order = order
        self.test_fraction = test_fraction
        self.num_classes = num_classes
        self.random_state = random_state
        self.max_bytes = max_bytes

    def estimate(self, points: Array, labels: Array, num_classes: int) -> Estimate:
        """See `BayesErrorEstimator.estimate`."""
        require_one_of(("ambient", "intrinsic"), dimension=self.dimension)
        require_at_least(3, order=self.order)
        sizes, errors = self._curve(points, labels, num_classes)
        d = float(points.shape[1])
        if self.dimension == "intrinsic":
            d = min(d, two_nearest_dimension(points, max_bytes=self.max_bytes))
        powers = sizes[:, None] ** (-(np.arange(self.order - 2) + 2.0) / d)
        design = np.column_stack([np.ones(len(sizes)), powers])
        chance = chance_error(num_classes)
        ends = np.ones(self.order - 1)
        start = np.zeros(self.order - 1)
        start[0] = 0.999 * chance  # the solver starts inside
        top, bottom = ends.copy(), -ends
        top[0], bottom[0] = chance, 0.0
        fit = least_squares(lambda x: design @ x - errors, start, bounds=(bottom, top))
        limit = float(np.clip(fit.x[0], 0, chance))
        self.condition_ = float(np.linalg.cond(design))
        self.reliable_ = bool(1e-6 < limit < chance - 1e-6)
        return Estimate(neighbor_lower_bound(limit, self.k, num_classes), limit)

    def _curve(self, points: Array, labels: Array, num_classes: int) -> tuple[Array, Array]:
        """Sizes of the training set, and the errors with so many."""
        train, test = held_out(len(labels), self.test_fraction, self.random_state)
        train = check_random_state(self.random_state).permutation(train)
        if not 1 <= self.k <= len(train):
            raise ValueError(
                f"k must be from 1 to the {len(train)} training rows of n_samples={len(labels)}, "
                f"got {self.k}"
            )
        part = len(train) // _PARTS
        ends = sorted({max(self.k, part * step) for step in range(1, _PARTS)} | {len(train)})
        search = NeighborSearch(points[test], self.k, self.metric, max_bytes=self.max_bytes)
        errors = []
        for start, end in zip([0, *ends], ends, strict=False):
            search.add(points[train[start:end]])
            voters = labels[train][search.indices]
            errors.append(vote_errors(voters, labels[test], num_classes).mean())
        return np.array(ends, dtype=np.float64), np.array(errors)
