"""Exact epsilon of Gaussian releases without sampling, in closed form."""

import math

from phalanx.checks import require_above, require_at_least, require_strictly_between
from phalanx.privacy.accountant import Budget


def gaussian_delta(noise_multiplier: float, releases: int, epsilon: float) -> float:
    """The least delta that goes with an epsilon after so many Gaussian releases.

    They compose to one Gaussian of `mu = sqrt(releases) / noise_multiplier`, also where what is
    released depends on earlier releases: `Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)`.

    Source: Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical
    Calibration and Optimal Denoising", ICML 2018; Dong, Roth, Su, "Gaussian Differential Privacy",
    Journal of the Royal Statistical Society B, 2022 (composition).
    """
    from scipy.special import log_ndtr, ndtr  # here, as `--help` must not wait for it

    if not releases:
        return 0.0
    mu = math.sqrt(releases) / noise_multiplier
    less = math.exp(min(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)), 0.0))
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu)) - less)


def composed_gaussian_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of Gaussian releases of all records, never below the exact value.

    Args:
        noise_multiplier: standard deviation of the noise over the sensitivity; above 0.
        releases: how many, each with noise of its own.
        delta: between 0 and 1.

    >>> from phalanx.privacy import composed_gaussian_epsilon
    >>> round(composed_gaussian_epsilon(10.0, 100, delta=1e-5), 4)
    4.3772
    """
    from scipy.optimize import brentq

    require_above(0, noise_multiplier=noise_multiplier)
    require_at_least(0, releases=releases)
    require_strictly_between(0, 1, delta=delta)

    def over(epsilon: float) -> float:
        return gaussian_delta(noise_multiplier, releases, epsilon) - delta

    if over(0.0) <= 0:
        return 0.0
    mu = math.sqrt(releases) / noise_multiplier
    highest = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1e-3
    return float(brentq(over, 0.0, highest, xtol=1e-10)) * (1 + 1e-9) + 1e-9


def gaussian_noise_multiplier(budget: Budget, releases: int = 1) -> float:
    """The least noise multiplier with which so many Gaussian releases fit a budget.

    >>> from phalanx.privacy import Budget, composed_gaussian_epsilon, gaussian_noise_multiplier
    >>> noise = gaussian_noise_multiplier(Budget(1.0, 1e-5), releases=1500)
    >>> 0.9999 < composed_gaussian_epsilon(noise, 1500, 1e-5) <= 1.0
    True
    """
    from scipy.optimize import brentq

    require_at_least(1, releases=releases)

    def over(log_noise: float) -> float:
        noise = math.exp(log_noise)
        return composed_gaussian_epsilon(noise, releases, budget.delta) - budget.epsilon

    found = math.exp(float(brentq(over, -12.0, 25.0, xtol=1e-8)))
    while over(math.log(found)) > 0:
        found *= 1 + 1e-7
    return found
