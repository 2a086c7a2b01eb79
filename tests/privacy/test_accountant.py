"""The accountant: reference values, closed forms, calibration, budgets and its ledger."""

import itertools
import math

import pytest
from scipy.stats import norm

from phalanx.errors import LedgerError
from phalanx.privacy import Accountant, Budget, noise_multiplier_for

pytest.importorskip("dp_accounting", reason="needs the extra phalanx[private]")

# Rate, noise multiplier, steps, and epsilon at delta 1e-5 by Renyi divergences (Opacus 1.6).
TABLE = [
    (0.01, 1.1, 1000, 1.7118),
    (256 / 60000, 1.1, 14040, 2.5944),
    (0.02, 0.99, 120, 1.9761),
    (250 / 20000, 0.56, 150, 7.1699),
    (1.0, 10.0, 100, 4.7285),
    (0.004, 0.7, 5000, 4.3490),
]


def of(*events, **options):
    accountant = Accountant(**options)
    for event in events:
        accountant.compose(*event)
    return accountant


methods = pytest.mark.parametrize("method", ["rdp", pytest.param("pld", marks=pytest.mark.slow)])


def test_reference_values(subtests):
    for rate, noise, steps, known in TABLE:
        with subtests.test(rate=rate, noise=noise, steps=steps):
            found = of((noise, rate, steps), method="rdp").epsilon(1e-5)
            assert found == pytest.approx(known, rel=1e-3)  # fractional orders are rounded up


@pytest.mark.slow
def test_privacy_losses_are_tighter_than_divergences(subtests):
    for rate, noise, steps, known in TABLE:
        with subtests.test(rate=rate, noise=noise, steps=steps):
            tighter = of((noise, rate, steps)).epsilon(1e-5)
            assert 0.75 * known < tighter < 0.96 * known


def delta_of_gaussian(epsilon, noise):
    """The exact curve of the Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8)."""
    half = 0.5 / noise
    return norm.cdf(half - epsilon * noise) - math.exp(epsilon) * norm.cdf(-half - epsilon * noise)


def test_without_sampling_it_is_the_exact_curve_of_the_gaussian_mechanism(subtests):
    for noise, steps, delta in [(1.0, 1, 1e-5), (10.0, 100, 1e-6), (30.0, 7, 0.01)]:
        with subtests.test(noise=noise, steps=steps):
            epsilon = of((noise, 1.0, steps)).epsilon(delta)
            one = noise / math.sqrt(steps)
            assert delta_of_gaussian(epsilon, one) <= delta
            assert delta_of_gaussian(epsilon - 1e-3, one) > delta


def test_epsilon_is_not_below_that_of_the_exact_losses_of_one_sampled_release():
    noise, rate, delta = 1.0, 0.3, 1e-3
    epsilon = of((noise, rate)).epsilon(delta)

    def leaks(value):  # removing: q N(1, z^2) + (1 - q) N(0, z^2) against N(0, z^2)
        border = noise**2 * math.log((math.exp(value) - 1 + rate) / rate) + 0.5
        mixed = rate * norm.sf(border, 1, noise) + (1 - rate) * norm.sf(border, 0, noise)
        return mixed - math.exp(value) * norm.sf(border, 0, noise)

    assert leaks(epsilon) <= delta < leaks(epsilon - 2e-3)


def test_the_order_of_releases_is_none_of_its_business_and_nothing_costs_nothing():
    events = [(1.1, 0.1, 3), (2.0, 1.0, 2), (1.1, 0.1, 2)]
    found = {of(*one).epsilon(1e-5) for one in itertools.permutations(events)}
    assert len(found) == 1
    assert of().epsilon(1e-5) == 0.0
    assert of((0.0, 0.5)).epsilon(1e-5) == math.inf


@methods
def test_calibration_is_the_inverse_and_never_below(method, subtests):
    for rate, noise, steps in [(0.01, 1.1, 1000), (1.0, 10.0, 100)]:
        with subtests.test(rate=rate):
            budget = Budget(of((noise, rate, steps), method=method).epsilon(1e-5), 1e-5)
            found = noise_multiplier_for(budget, rate, steps, method)
            assert found == pytest.approx(noise, rel=1e-3)
            assert of((found, rate, steps), method=method).epsilon(1e-5) <= budget.epsilon


@methods
def test_a_budget_lasts_for_as_many_steps_as_it_does(method):
    budget, accountant = Budget(1.0, 1e-5), Accountant(method=method)
    lasts = accountant.steps_within(budget, 1.2, 0.02)
    assert of((1.2, 0.02, lasts), method=method).epsilon(1e-5) <= 1.0
    assert of((1.2, 0.02, lasts + 1), method=method).epsilon(1e-5) > 1.0
    made = 0
    while not accountant.would_exceed(budget, 1.2, 0.02):
        accountant.compose(1.2, 0.02)
        made += 1
    assert made == lasts
    assert accountant.would_exceed(budget, 5.0, 0.5)
    assert Accountant(method=method).would_exceed(budget, 1.2, 0.02, steps=lasts + 1)
    assert not Accountant(method=method).would_exceed(budget, 1.2, 0.02, steps=lasts)


def test_a_ledger_comes_back_and_a_damaged_one_is_refused(subtests):
    accountant = of((1.1, 0.1, 3), (2.0, 1.0, 2))
    state = accountant.state_dict()
    other = Accountant()
    other.load_state_dict(state)
    assert other.events == accountant.events
    broken = [
        {},
        None,
        {**state, "unit": "client"},
        {**state, "relation": "replace"},
        {**state, "events": [[1.1, 0.1]]},
        {**state, "events": [[1.1, 0.1, 2.5]]},
        {**state, "events": [[1.1, 0.1, -3]]},
        {**state, "events": [["many", 0.1, 3]]},
        {**state, "events": [[math.nan, 0.1, 3]]},
        {**state, "events": 3},
        {**state, "more": 1},
    ]
    for one in broken:
        with subtests.test(state=one), pytest.raises(LedgerError, match="ledger"):
            other.load_state_dict(one)
        assert other.events == accountant.events


def test_epsilon_is_told_with_all_that_it_depends_on():
    told = of((1.1, 0.01, 1000), unit="client").statement(1e-5)
    for part in ("1.515", "1e-05", "add or remove one client", "hyper-parameters"):
        assert part in told


def test_what_is_out_of_range_is_refused(subtests):
    cases = [
        (lambda: Accountant(relation="none"), "relation must be 'add or remove' or 'replace'"),
        (lambda: Accountant().compose(-1.0), "noise_multiplier must be finite and at least 0"),
        (lambda: Accountant().compose(1.0, 1.5), "sampling_rate must be above 0 and at most 1"),
        (lambda: Accountant(relation="replace").compose(1.0, 0.5), "sampling_rate must be 1"),
        (lambda: Accountant().epsilon(0.0), "delta must be at least 1e-10"),
        (lambda: Budget(epsilon=0.0), "epsilon must be finite and above 0"),
        (lambda: Budget(delta=2.0), "delta must be at least 1e-10 and below 1"),
    ]
    for make, rule in cases:
        with subtests.test(rule=rule), pytest.raises(ValueError, match=rule):
            make()
