"""The noisy vote of signs: against a slow reference, and its sensitivity by brute force."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.privacy import noisy_vote, top_agg_rdp, top_agg_sensitivity, top_signs


def slow_signs(row: list[float], k: int) -> list[float]:
    best = sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))[:k]
    return [math.copysign(1.0, x) if i in best and x else 0.0 for i, x in enumerate(row)]


@given(st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=6, max_size=6),
                min_size=1, max_size=5), st.integers(1, 6))  # fmt: skip
def test_signs_and_majority_equal_a_slow_reference(rows, k):
    signs = top_signs(torch.tensor(rows), k)
    slow = [slow_signs(row, k) for row in rows]
    assert signs.tolist() == slow
    majority = noisy_vote(signs.sum(0), len(rows), noise_std=0.0, threshold=0.0).tolist()
    assert majority == [float(sum(c) > 0) - float(sum(c) < 0) for c in zip(*slow, strict=True)]


def test_stochastic_signs_are_unbiased_on_the_chosen_coordinates():
    row = torch.tensor([[0.5, -0.2, 0.05, 1.0, -0.7]], dtype=torch.float64)
    draws = 10_000
    found = top_signs(row.repeat(draws, 1), 4, generator=torch.Generator().manual_seed(0))
    assert (found.abs().sum(1) == 4).all()
    mean = row[0] / row.abs().max()
    mean[2] = 0.0
    error = ((1 - mean**2) / draws).sqrt()
    assert ((found.mean(0) - mean).abs() <= 3 * error + 1e-12).all()
    capped = top_signs(row, 4, cap=1e-5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(capped, top_signs(row, 4))  # all are above the cap: signs are certain


def test_sensitivity_is_two_roots_of_k_and_no_more():
    d = 4
    for k in (1, 2, 3):
        rows = [
            torch.tensor(values)
            for values in itertools.product((-2.0, -1.0, 0.0, 1.0, 2.0, math.nan), repeat=d)
        ]
        signs = {tuple(one.tolist()) for one in top_signs(torch.stack(rows), k)}
        largest = max(math.dist(a, b) for a, b in itertools.product(signs, repeat=2))
        assert largest == pytest.approx(top_agg_sensitivity(k))
        alone = max(math.hypot(*one) for one in signs)
        assert alone == pytest.approx(top_agg_sensitivity(k, replace=False))


def test_teachers_without_a_gradient_or_with_a_broken_one_do_not_vote():
    rows = torch.tensor([[0.0, 0.0, 0.0], [math.nan, 1.0, 2.0], [math.inf, 0.0, 1.0]])
    for chance in (None, torch.Generator().manual_seed(0)):
        assert torch.equal(top_signs(rows, 2, generator=chance), torch.zeros(3, 3))


def test_noise_has_its_standard_deviation_and_is_drawn_from_the_generator():
    votes = torch.zeros(100_000)
    above = noisy_vote(votes, 10, noise_std=5.0, threshold=0.5,
                       generator=torch.Generator().manual_seed(3))  # fmt: skip
    assert (above == 1).float().mean() == pytest.approx(0.1587, abs=0.005)  # one sigma
    assert (above == -1).float().mean() == pytest.approx(0.1587, abs=0.005)
    again = noisy_vote(votes, 10, noise_std=5.0, threshold=0.5,
                       generator=torch.Generator().manual_seed(3))  # fmt: skip
    assert torch.equal(above, again)


def test_a_vote_spends_what_its_sensitivity_says():
    for alpha, k, sigma, votes in ((1.5, 20, 200.0, 30), (33.0, 500, 700.0, 30)):
        expected = votes * 2 * k * alpha / sigma**2
        assert top_agg_rdp(alpha, k, sigma, votes) == pytest.approx(expected)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="k must be from 1 to the 3 coordinates, got 4"):
        top_signs(torch.ones(1, 3), 4)
    with pytest.raises(ValueError, match="generator must be given"):
        noisy_vote(torch.ones(1), 1, noise_std=1.0, threshold=0.0)
