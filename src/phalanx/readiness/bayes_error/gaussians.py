"""Gaussian classes whose Bayes errors are known: references for estimators."""

import numpy as np
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from phalanx.checks import require_at_least, require_finite_above, require_strictly_between
from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.label_noise import transition_matrix


def two_gaussians_bayes_error(
    distance: float, prior: float = 0.5, transition: Array | None = None
) -> float:
    """Bayes error of N(0, I) and N(mu, I) with `|mu| = distance`, in any dimension, closed form.

    Args:
        distance: between the means, in standard deviations.
        prior: probability of the second class.
        transition: `(2, 2)`, label noise; none if not given.

    >>> round(two_gaussians_bayes_error(2.0), 4)
    0.1587
    """
    require_finite_above(0, distance=distance)
    require_strictly_between(0, 1, prior=prior)
    T = np.eye(2) if transition is None else transition_matrix(transition)
    weights = np.array([1 - prior, prior])
    # The second label is likelier where gains[1] p_1(x) > gains[0] p_0(x).
    gains = weights * np.array([T[0, 0] - T[0, 1], T[1, 1] - T[1, 0]])
    if gains[0] * gains[1] <= 0:  # the same label everywhere
        second = float(gains[1] > gains[0])
        shares = np.array([second, second])
    else:
        threshold = distance / 2 + np.log(gains[0] / gains[1]) / distance
        shares = norm.sf(threshold - np.array([0.0, distance]))
        if gains[1] < 0:
            shares = 1 - shares
    right = weights * ((1 - shares) * T[:, 0] + shares * T[:, 1])
    return float(1 - right.sum())


def two_gaussians_neighbor_risk(distance: float, prior: float = 0.5) -> float:
    """Asymptotic 1NN error of the same classes, `E[1 - sum_c eta_c^2]`, by quadrature."""
    require_finite_above(0, distance=distance)
    require_strictly_between(0, 1, prior=prior)

    def integrand(x: float) -> float:
        eta = expit(np.log(prior / (1 - prior)) + distance * (x - distance / 2))
        density = (1 - prior) * norm.pdf(x) + prior * norm.pdf(x - distance)
        return float(2 * eta * (1 - eta) * density)

    return float(quad(integrand, -12, distance + 12, points=[distance / 2], limit=200)[0])


def simplex_gaussians_bayes_error(num_classes: int, distance: float) -> float:
    """Bayes error of C equally likely unit Gaussians, all means `distance` apart, by quadrature.

    `1 - E[Phi(Z + distance / sqrt(2))^(C - 1)]` with Z standard normal.

    >>> round(simplex_gaussians_bayes_error(2, 2.0), 4)
    0.1587
    """
    require_at_least(2, num_classes=num_classes)
    require_finite_above(0, distance=distance)

    def integrand(z: float) -> float:
        ahead = norm.logcdf(z + distance / np.sqrt(2))
        return float(-np.expm1((num_classes - 1) * ahead) * norm.pdf(z))

    return float(quad(integrand, -12, 12, limit=200, epsabs=1e-13)[0])


def sample_simplex_gaussians(
    num_samples: int, num_classes: int, distance: float, dim: int, generator: torch.Generator
) -> tuple[Array, Array]:
    """Samples `(n, dim)` and labels `(n,)` of equally likely unit Gaussians, equally far apart.

    Raises:
        ValueError: if dim is below num_classes - 1 for two classes, or num_classes for more.
    """
    require_at_least(1 if num_classes == 2 else num_classes, dim=dim)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    points = torch.randn(num_samples, dim, generator=generator, dtype=torch.float64)
    if num_classes == 2:
        points[:, 0] += distance * labels
    else:
        points[torch.arange(num_samples), labels] += distance / np.sqrt(2)
    return points.numpy(), labels.numpy()
