"""Bayes error from Gaussian kernel densities of the classes (KDE)."""

from typing import Literal

import numpy as np
from scipy.special import logsumexp

from phalanx.checks import require_finite_above
from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.base import BayesErrorEstimator, Estimate
from phalanx.readiness.bayes_error.neighbors import squared_distances


class KernelDensity(BayesErrorEstimator):
    """One minus the mean of the largest posterior under kernel densities of the classes (KDE).

    The density of a sample's own class leaves the sample out; log-densities are summed by
    log-sum-exp. One value: lower and upper estimate are the same, and no bound. It depends on the
    bandwidth more than on anything else.

    Cost: O(n^2 (d + C)) time; memory of `max_bytes`.
    Source: Fukunaga, Hummels, "Bayes Error Estimation Using Parzen and k-NN Procedures", 1987.

    >>> import numpy as np
    >>> points = np.array([[0.0], [0.1], [9.0], [9.1]])
    >>> round(KernelDensity(bandwidth=0.5).fit(points, [0, 0, 1, 1]).upper_, 6)
    0.0
    """

    def __init__(
        self,
        bandwidth: float | Literal["scott"] = "scott",
        num_classes: int | None = None,
        max_bytes: int = 2**28,
    ) -> None:
        """Stores the parameters.

        Args:
            bandwidth: standard deviation of the kernel in units of the features; scott takes their
                root mean square standard deviation times n^(-1 / (d + 4)).
            num_classes: classes that there are; those of y if not given.
            max_bytes: size of the blocks of distances.
        """
        self.bandwidth = bandwidth
        self.num_classes = num_classes
        self.max_bytes = max_bytes

    def estimate(self, points: Array, labels: Array, num_classes: int) -> Estimate:
        """See `BayesErrorEstimator.estimate`."""
        width = _bandwidth(self.bandwidth, points)
        counts = np.bincount(labels, minlength=num_classes)
        total = 0.0
        for block, distances in squared_distances(points, self.max_bytes):
            rows = np.arange(len(distances))
            exponents = -distances / (2 * width**2)
            exponents[rows, rows + (block.start or 0)] = -np.inf  # the sample itself
            logs = np.full((len(rows), num_classes), -np.inf)
            for one in np.flatnonzero(counts):
                logs[:, one] = logsumexp(exponents[:, labels == one], axis=1)
            own = counts[labels[block]]
            # The prior n_c / n times a mean over n_c - 1 others instead of n_c.
            logs[rows, labels[block]] += np.log(own / np.maximum(own - 1, 1))
            total += np.exp(logs.max(axis=1) - logsumexp(logs, axis=1)).sum()
        error = min(max(1 - float(total) / len(labels), 0.0), 1 - 1 / num_classes)
        return Estimate(error, error)


def _bandwidth(bandwidth: float | str, points: Array) -> float:
    if bandwidth != "scott":
        if isinstance(bandwidth, str):
            raise ValueError(f"bandwidth must be scott or a number, got {bandwidth!r}")
        require_finite_above(0, bandwidth=bandwidth)
        return float(bandwidth)
    n, d = points.shape
    spread = float(np.sqrt(points.astype(np.float64).var(axis=0).mean()))
    return spread * float(n) ** (-1 / (d + 4)) or 1.0  # of any width, if all points are one
