"""Base class of estimators of the Bayes error."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from phalanx.data.arrays import Array

Interval = tuple[float, float]

_Estimator = TypeVar("_Estimator", bound="BayesErrorEstimator")


@dataclass(frozen=True)
class Estimate:
    """Lower and upper estimate of a Bayes error, with intervals where there are any."""

    lower: float
    """Lower estimate, in [0, 1 - 1 / C]; a bound only as the number of samples grows."""

    upper: float
    """Upper estimate."""

    lower_interval: Interval | None = None
    """95 % interval of the lower estimate; None where none is known."""

    upper_interval: Interval | None = None
    """95 % interval of the upper estimate."""


class BayesErrorEstimator(BaseEstimator, ABC):  # type: ignore[misc]
    """Base of scikit-learn estimators that bound the Bayes error of features and labels.

    A subclass stores its parameters in `__init__`, `num_classes` among them, and implements
    `estimate`. After `fit(X, y)` there are `lower_`, `upper_`, `lower_interval_`,
    `upper_interval_`, `classes_`, `num_classes_`, `num_samples_` and `seconds_`.
    """

    num_classes: int | None

    def fit(self: _Estimator, X: Any, y: Any) -> _Estimator:
        """Estimates the Bayes error.

        Args:
            X: features, `(n, d)`, finite, at least 2 samples.
            y: labels, `(n,)`, of at least 2 classes.

        Raises:
            ValueError: if they are not, there are more classes than `num_classes`, or a parameter
                does not fit.
        """
        started = time.perf_counter()
        points, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        found = len(self.classes_)
        if found < 2:
            raise ValueError(f"y must be of at least 2 classes, got {found} class")
        if self.num_classes is not None and self.num_classes < found:
            raise ValueError(
                f"num_classes must be at least the {found} classes of y, got {self.num_classes}"
            )
        self.num_classes_ = self.num_classes or found
        self.num_samples_ = len(labels)
        estimate = self.estimate(points, labels, self.num_classes_)
        self.lower_, self.upper_ = estimate.lower, estimate.upper
        self.lower_interval_ = estimate.lower_interval
        self.upper_interval_ = estimate.upper_interval
        self.seconds_ = time.perf_counter() - started
        return self

    @abstractmethod
    def estimate(self, points: Array, labels: Array, num_classes: int) -> Estimate:
        """The estimate from checked features `(n, d)` and labels `0 .. num_classes - 1`, `(n,)`.

        Raises:
            ValueError: if a parameter does not fit.
        """

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
