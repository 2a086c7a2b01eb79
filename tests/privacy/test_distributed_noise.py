"""Noise in shares: whole numbers of the distribution that is claimed, and never less of it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip("cryptography", reason="pip install 'phalanx[secure]'")

from phalanx.privacy import (
    Accountant,
    DistributedNoise,
    SumSetup,
    discrete_gaussian,
    secure_sum,
    seeded_entropy,
)
from phalanx.privacy.secure_sum.distributed_noise import PIECES, _decided


def test_the_distribution_by_its_definition(subtests):
    """Counts of every number against the probabilities, small and large, whole and not."""
    for number, std in enumerate((0.3, 1.0, 2.5, 16.0)):
        with subtests.test(std):
            drawn = discrete_gaussian(std, 200_000, seeded_entropy("noise", number)).numpy()
            far = math.ceil(PIECES * std) + 1
            values = np.arange(-far, far + 1)
            chances = np.exp(-(values**2) / (2 * std**2))
            expected = chances / chances.sum() * len(drawn)
            counts = np.array([(drawn == value).sum() for value in values])
            assert counts.sum() == len(drawn)
            seen = expected > 10
            rest = np.append(expected[seen], expected[~seen].sum() + 1e-9)
            found = np.append(counts[seen], counts[~seen].sum())
            assert stats.chisquare(found, rest * found.sum() / rest.sum()).pvalue > 1e-4


def test_large_deviations_as_a_gaussian():
    for number, std in enumerate((1e4, 3e9, 2.0**47)):
        drawn = discrete_gaussian(std, 20_000, seeded_entropy("large", number)).double() / std
        assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-4
        assert drawn.abs().max() < PIECES
    assert len(discrete_gaussian(5.0, 0)) == 0
    for bad in (0.0, math.nan, 2.0**48):
        with pytest.raises(ValueError, match="std must be"):
            discrete_gaussian(bad, 1)


def test_a_coin_near_its_chance_is_decided_by_decimals():
    """exp(-(300^2 - 0) / (2 400^2)) = 0.754836...: the next digits tell."""
    chance = math.exp(-(300**2) / (2 * 400.0**2))
    coin = math.floor(chance * 2**53) / 2**53
    assert _decided(coin - 2.0**-50, 2**63, 0, 300, 400.0)
    assert not _decided(coin + 2.0**-50, 0, 0, 300, 400.0)


def test_no_randomness_is_used_twice():
    assert not discrete_gaussian(10.0, 100).equal(discrete_gaussian(10.0, 100))


def test_the_sum_of_shares_has_the_claimed_variance_whoever_drops_out(subtests):
    """As many as the threshold last, less those that collude: what is left is what is claimed."""
    n, width, unit = 6, 20_000, 2.0**-20
    noise = DistributedNoise(clip_norm=2.0, noise_multiplier=1.5, num_colluding=1)
    setup = SumSetup(n, width, threshold=4)
    share = noise.share_std(setup.needed) / unit
    words = torch.stack([discrete_gaussian(share, width).int() for _ in range(n)])
    for gone in ((), (1,), (1, 4)):
        with subtests.test(gone):
            found = secure_sum(words, setup, {"mask": gone})
            known = words[0]  # of the one that colludes
            rest = (found.total - known).double() * unit
            lasting = len(found.clients) - 1
            wanted = 1.5 * 2.0 * math.sqrt(lasting / (4 - 1))
            assert rest.std().item() == pytest.approx(wanted, rel=0.03)
            assert wanted >= 3.0 * (1 - 1e-12)


def test_epsilon_by_hand_and_what_is_refused():
    noise = DistributedNoise(1.0, 2.0)
    rho = 8 / (2 * 4)  # looser: Bun and Steinke; tighter: exact, for noise that is not discrete
    exact = Accountant()
    exact.compose(2.0, steps=8)
    loose = rho + 2 * math.sqrt(rho * math.log(1e5))
    assert exact.epsilon(1e-5) < noise.epsilon(8, 1e-5) < loose
    with pytest.raises(ValueError, match="num_colluding must be below the threshold 3, got 3"):
        DistributedNoise(num_colluding=3).share_std(3)
    for options in ({"clip_norm": 0.0}, {"noise_multiplier": -1.0}, {"num_colluding": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            DistributedNoise(**options)
    with pytest.raises(ValueError, match="delta"):
        noise.epsilon(1, 0.0)


def test_epsilon_bounds_the_exact_leak_of_discrete_noise():
    """The sum of the losses' tails, number by number, with delta above what is allowed nowhere."""
    support = torch.arange(-4000, 4001, dtype=torch.float64)
    for std, shift in ((20.0, 10.0), (5.0, 5.0)):
        log_p = -(support**2) / (2 * std**2)
        log_q = -((support - shift) ** 2) / (2 * std**2)
        log_p, log_q = log_p - log_p.logsumexp(0), log_q - log_q.logsumexp(0)
        for delta in (1e-2, 1e-5, 1e-9):
            epsilon = DistributedNoise(shift, std / shift).epsilon(1, delta)
            leaked = (log_p.exp() - math.exp(epsilon) * log_q.exp()).clamp(min=0).sum().item()
            assert leaked <= delta
            assert leaked > delta / 1000  # the bound is not far off, either
