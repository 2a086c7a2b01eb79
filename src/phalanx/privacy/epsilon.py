"""Epsilon of composed Gaussian mechanisms: privacy losses, Renyi divergences, the exact curve."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from phalanx.privacy.accounting_library import import_dp_accounting

Method = Literal["pld", "rdp"]
"""By privacy loss distributions, or by Renyi divergences; see `Accountant`."""

_ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(12, 64), 128, 256, 512)
_INTERVAL = 1e-4  # of privacy losses, rounded pessimistically
_COARSE = 50.0  # an epsilon beyond which nobody needs more than the bound by Renyi divergences


@lru_cache(maxsize=4096)
def composed_epsilon(
    events: tuple[tuple[float, float, int], ...], delta: float, method: Method
) -> float:
    """Epsilon of Gaussian releases, an upper bound; infinite if one has no noise.

    Args:
        events: noise multiplier, sampling rate and number of releases of each kind, in order.
        delta: see `Budget`.
        method: see `Accountant`.

    Raises:
        ImportError: if releases are sampled, and dp-accounting is not installed.

    Cost: a second for privacy losses of samples; remembered.
    """
    if not events:
        return 0.0
    if any(noise == 0 for noise, _, _ in events):
        return math.inf
    if all(rate == 1 for _, rate, _ in events):
        curve = _epsilon_without_sampling if method == "pld" else _epsilon_concentrated
        return curve(_whole(events), delta)
    bound = _epsilon_by_divergences(events, delta)
    if method == "rdp" or bound > _COARSE:
        return bound
    return min(bound, _epsilon_by_losses(events, delta))


def _whole(events: Sequence[tuple[float, float, int]]) -> float:
    """The noise multiplier of the one release that Gaussian ones without sampling compose to."""
    return 1 / math.sqrt(sum(steps / noise**2 for noise, _, steps in events))


def _epsilon_without_sampling(noise: float, delta: float) -> float:
    """The root of the exact curve `Phi(1/2z - e z) - exp(e) Phi(-1/2z - e z) = delta`.

    In closed form, so that nothing has to be rounded up, and no library to be installed.
    Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018.
    """
    from scipy.optimize import brentq  # here, as `--help` must not wait for it
    from scipy.special import log_ndtr, ndtr

    half = 0.5 / noise

    def gap(epsilon: float) -> float:
        tail = math.exp(min(epsilon + float(log_ndtr(-half - epsilon * noise)), 0.0))
        return float(ndtr(half - epsilon * noise)) - tail - delta

    if gap(0.0) <= 0:
        return 0.0
    high = 1.0
    while gap(high) > 0:
        high *= 2
    found = float(brentq(gap, 0.0, high, rtol=1e-12))
    while gap(found) > 0:
        found *= 1 + 1e-12
    return found


def _epsilon_concentrated(noise: float, delta: float) -> float:
    """`inf_a a r + log(1 - 1/a) - log(a delta) / (a - 1)`, where `r = 1 / (2 noise^2)`.

    What all mechanisms have whose Renyi divergence of order a is `a r` at most: Gaussian noise, and
    discrete Gaussian noise. Every order gives a bound, so that the search need not be exact.
    """
    half = 0.5 / noise**2

    from scipy.optimize import minimize_scalar  # here, as `--help` must not wait for it

    def bound(logarithm: float) -> float:
        above = math.exp(logarithm)
        order = 1 + above
        return order * half + math.log(above / order) - math.log(order * delta) / above

    found = minimize_scalar(bound, bounds=(-20.0, 30.0), method="bounded", options={"xatol": 1e-9})
    return max(0.0, float(found.fun))


def _epsilon_by_divergences(events: Sequence[tuple[float, float, int]], delta: float) -> float:
    library = import_dp_accounting()
    accountant = library.rdp.RdpAccountant(_ORDERS)
    for noise, rate, steps in events:
        event = library.GaussianDpEvent(noise)
        sampled = event if rate == 1 else library.PoissonSampledDpEvent(rate, event)
        accountant.compose(sampled, steps)
    return float(accountant.get_epsilon(delta))


def _epsilon_by_losses(events: Sequence[tuple[float, float, int]], delta: float) -> float:
    parts = [_losses(noise, rate).self_compose(n) for noise, rate, n in events if rate < 1]
    if whole := [one for one in events if one[1] == 1]:
        parts.append(_losses(_whole(whole), 1.0))
    total = parts[0]
    for one in parts[1:]:
        total = total.compose(one)
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=16)
def _losses(noise: float, rate: float) -> Any:
    """Privacy losses of one release, by adding and by removing, rounded up."""
    distributions = import_dp_accounting().pld.privacy_loss_distribution
    return distributions.from_gaussian_mechanism(
        standard_deviation=noise, sampling_prob=rate, value_discretization_interval=_INTERVAL
    )
