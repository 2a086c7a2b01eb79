"""Bayes error from the error of k nearest neighbours."""

from typing import Literal

import numpy as np
from sklearn.utils import check_random_state

from phalanx.checks import require_one_of, require_strictly_between
from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.base import BayesErrorEstimator, Estimate
from phalanx.readiness.bayes_error.cover_hart import clopper_pearson, neighbor_lower_bound
from phalanx.readiness.bayes_error.neighbors import Metric, nearest_neighbors

TieBreak = Literal["share", "smallest"]


class NearestNeighborError(BayesErrorEstimator):
    """Error of the k nearest neighbours as upper, and its Cover-Hart map as lower estimate.

    By leave-one-out, or on rows that are held out. Only as n grows does the lower estimate bound
    the Bayes error from below: with 4,000 samples in 10 and more dimensions it is often above.

    The intervals are Clopper-Pearson's, of the error given the reference rows. They hold on rows
    held out; by leave-one-out, where errors of samples depend on one another, they are a guide.

    Cost: O(n^2 d) time; memory of `max_bytes`.
    Source: Cover, Hart, "Nearest Neighbor Pattern Classification", 1967.

    >>> from sklearn.datasets import load_digits
    >>> found = NearestNeighborError().fit(*load_digits(return_X_y=True))
    >>> round(found.lower_, 4), round(found.upper_, 4)
    (0.0059, 0.0117)
    """

    def __init__(
        self,
        k: int = 1,
        metric: Metric = "euclidean",
        test_fraction: float | None = None,
        ties: TieBreak = "share",
        num_classes: int | None = None,
        random_state: int | None = 0,
        max_bytes: int = 2**28,
    ) -> None:
        """Stores the parameters.

        Args:
            k: neighbours that vote.
            metric: euclidean or cosine.
            test_fraction: share of the rows that is held out; leave-one-out if not given.
            ties: share counts the probability of an error if ties are broken at random; smallest
                takes the smallest label, which biases even k.
            num_classes: classes that there are; those of y if not given.
            random_state: randomness of the rows held out.
            max_bytes: size of the blocks of distances.
        """
        self.k = k
        self.metric = metric
        self.test_fraction = test_fraction
        self.ties = ties
        self.num_classes = num_classes
        self.random_state = random_state
        self.max_bytes = max_bytes

    def estimate(self, points: Array, labels: Array, num_classes: int) -> Estimate:
        """See `BayesErrorEstimator.estimate`."""
        require_one_of(("share", "smallest"), ties=self.ties)
        if self.test_fraction is None:
            _, found = nearest_neighbors(
                points, None, self.k, self.metric, max_bytes=self.max_bytes
            )
            truth, voters = labels, labels[found]
        else:
            train, test = held_out(len(labels), self.test_fraction, self.random_state)
            _, found = nearest_neighbors(
                points[test], points[train], self.k, self.metric, max_bytes=self.max_bytes
            )
            truth, voters = labels[test], labels[train][found]
        errors = vote_errors(voters, truth, num_classes, self.ties).sum()
        return bounds_of_error(float(errors), len(truth), self.k, num_classes)


def held_out(num_rows: int, fraction: float, random_state: int | None) -> tuple[Array, Array]:
    """Rows of a training and a test set, drawn without a look at the labels.

    Raises:
        ValueError: if either would be empty.
    """
    require_strictly_between(0, 1, test_fraction=fraction)
    num_test = round(fraction * num_rows)
    if not 0 < num_test < num_rows:
        raise ValueError(
            f"test_fraction must leave rows on both sides, got {fraction} of n_samples={num_rows}"
        )
    order = check_random_state(random_state).permutation(num_rows)
    return np.sort(order[num_test:]), np.sort(order[:num_test])


def class_counts(labels: Array, num_classes: int) -> Array:
    """How many of a row's labels are of each class: `(n, k)` to `(n, C)`."""
    counts = np.zeros((len(labels), num_classes))
    np.add.at(counts, (np.arange(len(labels))[:, None], labels), 1)
    return counts


def vote_errors(voters: Array, truth: Array, num_classes: int, ties: TieBreak = "share") -> Array:
    """Error of the majority of each row: 0, 1, or its probability if ties are broken at random.

    Args:
        voters: labels of the neighbours, `(n, k)`.
        truth: labels, `(n,)`.
        num_classes: how many classes there are.
        ties: see `NearestNeighborError`.
    """
    if voters.shape[1] == 1:
        wrong: Array = (voters[:, 0] != truth).astype(np.float64)
        return wrong
    counts = class_counts(voters, num_classes)
    if ties == "smallest":
        return np.asarray(counts.argmax(axis=1) != truth, dtype=np.float64)
    first = counts == counts.max(axis=1, keepdims=True)
    right = first[np.arange(len(truth)), truth] / first.sum(axis=1)
    return np.asarray(1 - right)


def bounds_of_error(errors: float, num_samples: int, k: int, num_classes: int) -> Estimate:
    """Estimates from a count of kNN errors, with the intervals of Clopper and Pearson."""
    chance = 1 - 1 / num_classes
    error = errors / num_samples
    low, high = clopper_pearson(errors, num_samples)
    lower = neighbor_lower_bound(error, k, num_classes)
    return Estimate(
        lower,
        min(error, chance),
        (neighbor_lower_bound(low, k, num_classes), neighbor_lower_bound(high, k, num_classes)),
        (min(low, chance), min(high, chance)),
    )
