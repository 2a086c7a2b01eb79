"""Safety and smoothness of a transformation: what kNN over its features can hope for."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from phalanx.checks import require_at_least
from phalanx.data.arrays import Array
from phalanx.randomness import generator
from phalanx.readiness.bayes_error.intrinsic_dimension import two_nearest_dimension
from phalanx.readiness.bayes_error.nearest_neighbor_error import vote_errors
from phalanx.readiness.bayes_error.neighbors import NeighborSearch
from phalanx.readiness.data_checks import checked_inputs, numbered_classes, require_as_many
from phalanx.readiness.transformations import Embedding, Transformation

_PENALTIES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Diagnosis:
    """What decides how well k nearest neighbours do over a transformation."""

    brier: float
    """Safety: Brier score of a softmax probe on held-out rows, `mean ||p - onehot||^2`, in [0, 2].
    It is the probe's distance from the posterior plus what labels are uncertain by, which is the
    same for all transformations: differences between them count."""

    penalty: float
    """L2 penalty of the probe that had the smallest score."""

    smoothness: float
    """Frobenius norm of the probe's weights times the mean norm of a feature vector: the smaller,
    the smoother."""

    dimension: int
    """Features that the transformation gives."""

    intrinsic_dimension: float | None
    """Two-NN estimate of the dimension in which they lie; None with fewer than 3 that differ."""

    sizes: tuple[int, ...]
    """Training rows of the curve."""

    errors: tuple[float, ...]
    """Error of k nearest neighbours with so many of them, on held-out rows."""

    balanced_k: int
    """`n^(2 / (2 + d))` with the intrinsic dimension: k that balances noise and distance."""


def diagnose_transformation(
    transformation: Transformation, inputs: Any, labels: Any, *, k: int = 1, seed: int = 0
) -> Diagnosis:
    """Safety, smoothness, dimensions and the kNN curve of a transformation.

    Half of the rows are held out. A transformation that needs labels is fitted to half of the
    others, and the probe and the neighbours get the rest.

    Args:
        transformation: a scikit-learn transformer, a module of torch, or a callable.
        inputs: `(n, ...)` numbers or `(n,)` texts, n at least 20.
        labels: `(n,)`.
        k: neighbours that vote.
        seed: of the order of rows.

    Raises:
        ValueError: if data or arguments are not as said.

    Source: Rimanic, Renggli, Li, Zhang, "On Convergence of Nearest Neighbor Classifiers over
    Feature Transformations", 2020.

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> X, y = load_digits(return_X_y=True)
    >>> few, many = (diagnose_transformation(PCA(size), X, y) for size in (2, 32))
    >>> few.brier > many.brier, few.errors[-1] > many.errors[-1]
    (True, True)
    """
    points = checked_inputs(inputs, "inputs")
    numbers, _, _, num_classes = numbered_classes(labels, labels, None)
    require_as_many(points, numbers, "inputs")
    require_at_least(20, rows=len(points))
    rows = torch.randperm(len(points), generator=generator(seed, "diagnosis")).numpy()
    test, train = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    embedding = Embedding("diagnosed", transformation)
    seen = train
    if embedding.supervised:
        seen, train = train[: len(train) // 2], train[len(train) // 2 :]
    embedding.fit(points[seen], numbers[seen])
    features, held_out = embedding.transform(points[train]), embedding.transform(points[test])
    if not 1 <= k <= len(train) // 8:
        raise ValueError(f"k must be from 1 to {len(train) // 8} of {len(train)} rows, got {k}")
    brier, penalty, smoothness = _probe(features, numbers[train], held_out, numbers[test])
    distinct = len(np.unique(features, axis=0)) >= 3
    intrinsic = two_nearest_dimension(features) if distinct else None
    dimension = features.shape[1]
    d = dimension if intrinsic is None else min(intrinsic, dimension)
    sizes, errors = _curve(features, numbers[train], held_out, numbers[test], k, num_classes)
    balanced = max(1, round(len(train) ** (2 / (2 + d))))
    return Diagnosis(brier, penalty, smoothness, dimension, intrinsic, sizes, errors, balanced)


def _probe(
    features: Array, labels: Array, held_out: Array, truth: Array
) -> tuple[float, float, float]:
    """Smallest Brier score over penalties, its penalty, and the smoothness of that probe."""
    unit, unit_held_out = _unit(features), _unit(held_out)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError("labels must be of at least 2 classes among the rows of the probe")
    # A class that the probe has not seen has probability 0: each of its rows adds 1.
    onehot = (truth[:, None] == classes).astype(np.float64)
    unseen = 1 - onehot.sum(axis=1)
    found = []
    for penalty in _PENALTIES:
        strength = 1 / (penalty * len(labels)) if penalty else np.inf
        probe = LogisticRegression(C=strength, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # without a penalty
            probe.fit(unit, labels)
        guesses = probe.predict_proba(unit_held_out)
        score = float((np.square(guesses - onehot).sum(axis=1) + unseen).mean())
        found.append((score, penalty, float(np.linalg.norm(probe.coef_))))
    score, penalty, norm = min(found)
    return score, penalty, norm * float(np.linalg.norm(unit, axis=1).mean())


def _unit(features: Array) -> Array:
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    unit: Array = features / np.where(lengths > 0, lengths, 1)
    return unit


def _curve(
    features: Array, labels: Array, held_out: Array, truth: Array, k: int, num_classes: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    ends = [len(features) * part // 8 for part in range(1, 9)]
    search, errors = NeighborSearch(held_out, k), []
    for start, end in zip([0, *ends], ends, strict=False):
        search.add(features[start:end])
        errors.append(float(vote_errors(labels[search.indices], truth, num_classes).mean()))
    return tuple(ends), tuple(errors)
