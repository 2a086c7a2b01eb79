"""Label noise, and what it does to the Bayes error, exactly."""

import numpy as np
import torch

from phalanx.checks import require_at_least, require_between
from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.cover_hart import chance_error


def uniform_noise(rate: float, num_classes: int) -> Array:
    """Transition matrix of labels that are drawn anew, uniformly, with a probability.

    A label that is drawn anew may stay: it changes with probability `rate (C - 1) / C`.

    >>> uniform_noise(0.5, 2).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    require_between(0, 1, rate=rate)
    require_at_least(2, num_classes=num_classes)
    matrix: Array = (1 - rate) * np.eye(num_classes) + rate / num_classes
    return matrix


def class_noise(rates: Array) -> Array:
    """Transition matrix of labels that leave class i with probability `rates[i]`, to any other.

    >>> class_noise(np.array([0.2, 0.0, 0.0])).tolist()
    [[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rates = np.asarray(rates, dtype=np.float64)
    if rates.ndim != 1 or len(rates) < 2 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"rates must be from 0 to 1 for each of at least 2 classes, got {rates}")
    matrix = np.repeat(rates[:, None] / (len(rates) - 1), len(rates), axis=1)
    np.fill_diagonal(matrix, 1 - rates)
    return matrix


def transition_matrix(matrix: Array) -> Array:
    """A matrix `T[i, j] = P(noisy label j | label i)`, checked.

    Raises:
        ValueError: if it is not square with non-negative entries and rows that sum to 1.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"transition must be a matrix of C x C classes, got shape {matrix.shape}")
    if not (matrix >= 0).all() or not np.allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-9):
        raise ValueError("transition must have non-negative entries and rows that sum to 1")
    return matrix


def noisy_bayes_error(bayes_error: float, rate: float, num_classes: int) -> float:
    """Bayes error under uniform noise: `R + rate (1 - 1 / C - R)`, for every distribution.

    The posterior becomes `(1 - rate) eta + rate / C`, which has the same largest class.

    >>> noisy_bayes_error(0.2, 0.5, 2)
    0.35
    """
    require_between(0, 1, rate=rate)
    return bayes_error + rate * (chance_error(num_classes) - bayes_error)


def bayes_error_of_posteriors(
    posteriors: Array, transition: Array | None = None, weights: Array | None = None
) -> float:
    """Bayes error of a known posterior under any noise: `1 - E max_j sum_i eta_i T_ij`.

    Exact where inputs are finitely many with these weights; a mean over samples otherwise.

    Args:
        posteriors: `(n, C)`, P(class | input) without noise.
        transition: `(C, C)`; no noise if not given.
        weights: `(n,)`, probability of each input; equal ones if not given.
    """
    noisy = posteriors if transition is None else posteriors @ transition_matrix(transition)
    return float(1 - np.average(noisy.max(axis=1), weights=weights))


def noisy_bayes_error_bounds(bayes_error: float, transition: Array) -> tuple[float, float]:
    """Bounds on the Bayes error under any noise, where only the one without noise is known.

    With t_min and t_max the ends of the diagonal and m the largest entry off it:
    `1 - m - (t_max - m) (1 - R)` (`1 - m` if t_max < m) and `1 - t_min (1 - R)`, the latter at most
    that of guessing. Uniform noise meets the lower one.

    >>> [round(one, 4) for one in noisy_bayes_error_bounds(0.1, uniform_noise(0.5, 2))]
    [0.3, 0.325]
    """
    matrix = transition_matrix(transition)
    stays, leaves = np.diagonal(matrix), matrix[~np.eye(len(matrix), dtype=bool)].max()
    low = 1 - leaves - max(0.0, stays.max() - leaves) * (1 - bayes_error)
    high = min(1 - stays.min() * (1 - bayes_error), chance_error(len(matrix)))
    return max(0.0, float(low)), float(high)


def redraw_labels(
    labels: Array, rate: float, num_classes: int, generator: torch.Generator
) -> Array:
    """Labels of which `floor(rate n)` are drawn anew, uniformly; a new label may be the old one.

    Args:
        labels: `(n,)`, from 0 to num_classes - 1; not changed.
        rate: share that is drawn anew.
        num_classes: classes to draw from.
        generator: randomness.
    """
    require_between(0, 1, rate=rate)
    noisy = np.array(labels, dtype=np.int64)
    num = int(rate * len(noisy) + 1e-9)  # 0.29 * 100 is a little below 29
    chosen = torch.randperm(len(noisy), generator=generator)[:num].numpy()
    noisy[chosen] = torch.randint(num_classes, (num,), generator=generator).numpy()
    return noisy


def transition_labels(labels: Array, transition: Array, generator: torch.Generator) -> Array:
    """Labels of which each is replaced by a draw from its row of a transition matrix."""
    rows = transition_matrix(transition).cumsum(axis=1)[np.asarray(labels, dtype=np.int64)]
    drawn = torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
    noisy: Array = (drawn[:, None] >= rows[:, :-1]).sum(axis=1)
    return noisy
