"""FeeBee: estimators of the Bayes error, judged by how they follow injected label noise."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from phalanx.checks import require_at_least, require_between
from phalanx.data.arrays import Array
from phalanx.randomness import generator
from phalanx.readiness.bayes_error.cover_hart import chance_error
from phalanx.readiness.bayes_error.label_noise import noisy_bayes_error, redraw_labels
from phalanx.readiness.data_checks import checked_inputs, numbered_classes, require_as_many
from phalanx.readiness.transformations import (
    Transformation,
    named_transformations,
    plain_transformations,
)

NOISE_RATES = tuple(round(0.1 * step, 1) for step in range(11))
"""Shares of labels that are drawn anew."""


@dataclass(frozen=True)
class NoiseRun:
    """What one estimator said of one injection of noise."""

    transformation: str
    """Name of the transformation."""

    estimator: str
    """Name of the estimator."""

    rate: float
    """Share of the labels that were drawn anew."""

    run: int
    """Number of the repetition, which its randomness follows from."""

    lower: float | None
    """Lower estimate, clipped to [0, 1 - 1 / C]; None where the estimator failed."""

    upper: float | None
    """Upper estimate, likewise."""

    seconds: float
    """Time that it took."""

    failure: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class Score:
    """How far an estimate was outside the corridor in which the Bayes error must be.

    0 is best. The area under the lower end of the corridor is 1, so that an estimate that is always
    0 scores 1.
    """

    over: float
    """What it was above the corridor."""

    under: float
    """What it was below."""

    @property
    def total(self) -> float:
        """Both together."""
        return self.over + self.under


def inject_noise(
    estimators: Mapping[str, Any],
    inputs: Any,
    labels: Any,
    *,
    transformations: Mapping[str, Transformation] | None = None,
    num_classes: int | None = None,
    rates: Sequence[float] = NOISE_RATES,
    runs: int = 5,
    seed: int = 0,
    known: Iterable[NoiseRun] = (),
) -> Iterator[NoiseRun]:
    """Estimates under label noise, one after the other; those that are known are not repeated.

    All estimators see the same noise: it follows from seed, rate and run alone. Features are
    computed once for each transformation. A failure of an estimator is a result, too.

    Args:
        estimators: by name; objects whose `fit(features, labels)` leaves `lower_` and `upper_`, or
            functions of features and labels that return both.
        inputs: `(n, ...)` numbers or `(n,)` texts.
        labels: `(n,)`.
        transformations: by name; those of `plain_transformations` if not given. None may need
            labels: it would be judged on rows that it was fitted to.
        num_classes: classes that there are; those that occur if not given.
        rates: shares of labels that are drawn anew.
        runs: repetitions.
        seed: of the noise.
        known: results that are left out.

    Raises:
        ValueError: if data or arguments are not as said.
    """
    require_at_least(1, runs=runs, estimators=len(estimators))
    for rate in rates:
        require_between(0, 1, rate=rate)
    points = checked_inputs(inputs, "inputs")
    numbers, _, _, classes = numbered_classes(labels, labels, num_classes)
    require_as_many(points, numbers, "inputs")
    given = transformations or plain_transformations(points)
    embeddings = named_transformations(given, points)
    if seen := [name for name, one in embeddings.items() if one.supervised]:
        raise ValueError(f"transformations must do without labels, got {', '.join(seen)}")
    done = {(one.transformation, one.estimator, one.rate, one.run) for one in known}
    for transformation, embedding in embeddings.items():
        embedding.fit(points, numbers)
        features = embedding.transform(points)
        for run in range(runs):
            for rate in rates:
                noise = generator(seed, "noise", str(rate), run)
                noisy = redraw_labels(numbers, rate, classes, noise)
                for name, estimator in estimators.items():
                    if (transformation, name, rate, run) not in done:
                        where = (transformation, name, rate, run)
                        yield NoiseRun(*where, *_estimate(estimator, features, noisy, classes))


def _estimate(
    estimator: Any, features: Array, labels: Array, num_classes: int
) -> tuple[float | None, float | None, float, str]:
    started = time.perf_counter()
    chance = chance_error(num_classes)
    try:
        if hasattr(estimator, "fit"):
            fitted = clone(estimator)
            if "num_classes" in fitted.get_params():
                fitted.set_params(num_classes=num_classes)  # noise may leave a class without rows
            fitted.fit(features, labels)
            found = fitted.lower_, fitted.upper_
        else:
            found = estimator(features, labels)
        lower, upper = (float(np.clip(float(one), 0, chance)) for one in found)
        if not np.isfinite([lower, upper]).all():
            raise ValueError("an estimate is NaN")
    except Exception as error:
        return None, None, time.perf_counter() - started, f"{type(error).__name__}: {error}"
    return lower, upper, time.perf_counter() - started, ""


def corridor(rate: float, best_known_error: float, num_classes: int) -> tuple[float, float]:
    """Where the Bayes error is under noise: above that of 0, below that of the best known error."""
    return (
        noisy_bayes_error(0.0, rate, num_classes),
        noisy_bayes_error(best_known_error, rate, num_classes),
    )


def feebee_score(
    estimates: Iterable[tuple[float, float]], best_known_error: float, num_classes: int
) -> Score:
    """Score of estimates under noise: mean distance from the corridor, times 2 C / (C - 1).

    The mean is over the estimates of each rate first, then over the rates.

    Args:
        estimates: pairs of rate and estimate, at least one.
        best_known_error: an upper bound of the Bayes error without noise, such as the best
            published error.
        num_classes: how many classes there are.

    Raises:
        ValueError: if the bound is not from 0 to 1 - 1 / C, or there are no estimates.

    Source: Renggli, Rimanic, Hollenstein, Zhang, "Evaluating Bayes Error Estimators on Real-World
    Datasets with FeeBee", 2021.

    >>> feebee_score([(rate, 0.0) for rate in NOISE_RATES], 0.01, 10)
    Score(over=0.0, under=1.0)
    """
    chance = chance_error(num_classes)
    require_between(0, chance, best_known_error=best_known_error)
    by_rate: dict[float, list[float]] = {}
    for rate, estimate in estimates:
        by_rate.setdefault(rate, []).append(min(max(estimate, 0.0), chance))
    require_at_least(1, estimates=len(by_rate))
    over, under = [], []
    for rate, found in by_rate.items():
        low, high = corridor(rate, best_known_error, num_classes)
        over.append(np.mean([max(0.0, one - high) for one in found]))
        under.append(np.mean([max(0.0, low - one) for one in found]))
    scale = 2 / chance
    return Score(round(float(scale * np.mean(over)), 12), round(float(scale * np.mean(under)), 12))


def feebee_scores(
    runs: Iterable[NoiseRun], best_known_error: float, num_classes: int
) -> dict[tuple[str, str], tuple[Score, Score] | None]:
    """Scores of the lower and the upper estimates, by transformation and estimator.

    None where an estimator failed in any run: a mean over the others would be no score.
    """
    grouped: dict[tuple[str, str], list[NoiseRun]] = {}
    for one in runs:
        grouped.setdefault((one.transformation, one.estimator), []).append(one)
    scores: dict[tuple[str, str], tuple[Score, Score] | None] = {}
    for key, found in grouped.items():
        lower = [(one.rate, one.lower) for one in found if one.lower is not None]
        upper = [(one.rate, one.upper) for one in found if one.upper is not None]
        scores[key] = None
        if len(lower) == len(found):
            scores[key] = (
                feebee_score(lower, best_known_error, num_classes),
                feebee_score(upper, best_known_error, num_classes),
            )
    return scores
