"""Cover-Hart bounds between the error of nearest neighbours and the Bayes error, both ways."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from phalanx.checks import require_at_least, require_between, require_strictly_between
from phalanx.data.arrays import Array


def chance_error(num_classes: int) -> float:
    """Error of guessing uniformly: `1 - 1 / num_classes`, the largest Bayes error there is."""
    require_at_least(2, num_classes=num_classes)
    return 1 - 1 / num_classes


def cover_hart(error: ArrayLike, num_classes: int) -> Array:
    """Smallest Bayes error that an asymptotic 1NN error allows, elementwise.

    With a = 1 - 1 / C: `a (1 - sqrt(1 - e / a))`, computed as `e / (1 + sqrt(1 - e / a))`, which is
    exact near 0. Errors are clipped to [0, a] first. Increasing, convex, between e / 2 and e.

    It bounds the Bayes error from below as the number of samples grows; with few of them the 1NN
    error is too large, and so is this.

    Source: Cover, Hart, "Nearest Neighbor Pattern Classification", 1967.

    >>> cover_hart([0.0, 0.18, 0.5], 2).round(4).tolist()
    [0.0, 0.1, 0.5]
    """
    a = chance_error(num_classes)
    e = np.clip(np.asarray(error, dtype=np.float64), 0, a)
    mapped: Array = e / (1 + np.sqrt(np.maximum(0, 1 - e / a)))
    return mapped


def inverse_cover_hart(bayes_error: ArrayLike, num_classes: int) -> Array:
    """Largest asymptotic 1NN error that a Bayes error allows: `b (2 - b / a)`, elementwise.

    >>> inverse_cover_hart(0.1, 2).round(4).item()
    0.18
    """
    a = chance_error(num_classes)
    b = np.clip(np.asarray(bayes_error, dtype=np.float64), 0, a)
    mapped: Array = b * (2 - b / a)
    return mapped


def neighbor_lower_bound(error: float, k: int, num_classes: int) -> float:
    """Smallest Bayes error that an asymptotic kNN error allows, ties being broken at random.

    The Cover-Hart map for k = 1 or more than two classes; for two classes `e / 2` at k = 2 and
    `e / (1 + 1 / sqrt(k))` above.

    Source: Devroye, Györfi, Lugosi, "A Probabilistic Theory of Pattern Recognition", 1996,
    chapter 5.
    """
    require_at_least(1, k=k)
    if k == 1 or num_classes > 2:
        return float(cover_hart(error, num_classes))
    error = min(max(error, 0.0), chance_error(num_classes))
    return error / (2 if k == 2 else 1 + 1 / math.sqrt(k))


def clopper_pearson(
    errors: float, num_samples: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Exact two-sided interval of a binomial share, which covers it with at least `confidence`.

    Counts that are no whole numbers, as fractional credit for ties makes them, are rounded down for
    the lower end and up for the upper one.

    Args:
        errors: how many of the samples are errors.
        num_samples: independent samples.
        confidence: probability that the interval covers the share.

    Raises:
        ValueError: if there are more errors than samples, or no samples.

    >>> low, high = clopper_pearson(0, 100)
    >>> low, round(high, 4)
    (0.0, 0.0362)
    """
    require_at_least(1, num_samples=num_samples)
    require_between(0, num_samples, errors=errors)
    require_strictly_between(0, 1, confidence=confidence)
    tail = (1 - confidence) / 2
    least, most = int(np.floor(errors + 1e-9)), int(np.ceil(errors - 1e-9))
    low = float(beta.ppf(tail, least, num_samples - least + 1)) if least else 0.0
    high = float(beta.isf(tail, most + 1, num_samples - most)) if most < num_samples else 1.0
    return low, high
