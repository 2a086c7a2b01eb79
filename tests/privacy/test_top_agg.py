"""TopAgg: what votes are, how far one voter moves them, and what they say on average."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from phalanx.privacy import noisy_majority, top_agg_sensitivity, top_k_votes
from phalanx.privacy.noise import (
    aes_blocks,
    box_muller,
    shake_blocks,
    standard_normal,
    with_noise,
)
from phalanx.randomness import generator

MODES = ("sign", "stochastic", "values")


def kept(row, k):
    """Places of the k largest, the first of equal ones: by sorting."""
    return sorted(range(len(row)), key=lambda place: (-abs(row[place]), place))[:k]


@given(
    rows=st.lists(
        st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1e-30, 7.5]), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(1, 6),
)
def test_votes_are_those_of_a_slow_reference_and_have_norm_sqrt_k(rows, k):
    gradients = torch.tensor(rows)
    slow = [[math.copysign(1.0, x) if x and i in kept(row, k) else 0.0 for i, x in enumerate(row)]
            for row in rows]  # fmt: skip
    assert top_k_votes(gradients, k).tolist() == slow
    majority = noisy_majority(top_k_votes(gradients, k).sum(0), len(rows), 0.0).tolist()
    assert majority == [float(sum(c) > 0) - float(sum(c) < 0) for c in zip(*slow, strict=True)]
    for mode in MODES:
        votes = top_k_votes(gradients, k, mode, generator=generator(0))
        assert (votes != 0).tolist() == (torch.tensor(slow) != 0).tolist()
        assert votes.norm(dim=1).max() <= k**0.5 * (1 + 1e-6)
        if mode == "values" and gradients.any(dim=1).all():
            torch.testing.assert_close(votes.norm(dim=1), torch.full((len(rows),), k**0.5))


def test_sensitivity_is_two_roots_of_k_and_no_more():
    values = (-2.0, -1.0, 0.0, 1.0, 2.0, math.nan)
    rows = torch.tensor(list(itertools.product(values, repeat=4)))
    for k in (1, 2, 3):
        signs = {tuple(one.tolist()) for one in top_k_votes(rows, k)}
        largest = max(math.dist(a, b) for a, b in itertools.product(signs, repeat=2))
        assert largest == pytest.approx(top_agg_sensitivity(k))
        alone = max(math.hypot(*one) for one in signs)
        assert alone == pytest.approx(top_agg_sensitivity(k, replace=False))
    source, k = generator(1), 5
    for mode in MODES:
        pairs = torch.randn(2, 3000, 12, generator=source)
        one, other = (top_k_votes(rows, k, mode, generator=source) for rows in pairs)
        assert (one - other).norm(dim=1).max() <= top_agg_sensitivity(k) * (1 + 1e-6)


def test_stochastic_signs_are_unbiased():
    own, draws = torch.tensor([0.5, -2.0, 0.1, 1.0]), 10_000
    votes = top_k_votes(own.expand(draws, -1), 3, "stochastic", generator=generator(2))
    wanted = torch.tensor([0.25, -1.0, 0.0, 0.5])
    assert ((votes.mean(dim=0) - wanted).abs() <= 3 / draws**0.5).all()
    capped = top_k_votes(own.expand(draws, -1), 3, "stochastic", 0.75, generator(3)).mean(dim=0)
    assert abs(capped[0].item() - 2 / 3) < 3 / draws**0.5
    assert capped[1].item() == -1.0


def test_voters_without_a_gradient_or_with_a_broken_one_do_not_vote():
    rows = torch.tensor([[0.0, 0.0, 0.0], [math.nan, 1.0, 2.0], [math.inf, 0.0, 1.0]])
    for mode in MODES:
        assert not top_k_votes(rows, 2, mode, generator=generator(0)).any()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="k must be from 1 to the 3 coordinates, got 4"):
        top_k_votes(torch.ones(1, 3), 4)
    with pytest.raises(ValueError, match="num_voters must be at least 1, got 0"):
        noisy_majority(torch.ones(1), 0, 0.5)


def test_both_sources_of_noise_are_normal_and_without_correlation(subtests):
    """Numbers come in pairs of one radius, halves of a block: they must not know of each other."""
    for source in (aes_blocks, shake_blocks):
        if source is aes_blocks:
            pytest.importorskip("cryptography", reason="needs the extra phalanx[private]")
        with subtests.test(source=source.__name__):
            drawn = [box_muller(block).numpy() for block in source(b"seed", "label", 100_000)]
            numbers = np.concatenate(drawn)
            assert len(numbers) == 200_000
            assert kstest(numbers, "norm").pvalue > 1e-3
            for one in drawn:
                first, second = one.reshape(2, -1)
                for power in (1, 2):
                    assert (
                        abs(np.corrcoef(first**power, second**power)[0, 1]) < 5 / len(first) ** 0.5
                    )
            again = np.concatenate([box_muller(one) for one in source(b"seed", "other", 100_000)])
            assert abs(np.corrcoef(numbers, again)[0, 1]) < 0.01
    for count in (0, 1, 7):
        assert standard_normal(b"seed", "label", count).shape == (count,)


def test_noise_is_normal_and_lies_on_a_grid_that_hides_the_value():
    drawn = standard_normal(b"seed", "label", 200_000)
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    assert abs((drawn.abs() > 1.959964).double().mean() - 0.05) < 0.002
    values = torch.randn(1000, generator=generator(5))
    found = with_noise(values.double(), 2.0, 1.0, b"seed", "release")
    grid = 2.0**-15  # 2^-10 / sqrt(1000), rounded down to a power of two
    assert (found / grid).equal((found / grid).round())
    assert with_noise(values, 0.0, 1.0, b"seed", "release").equal(values)
    # A value that differs by less than half a step of the grid changes nothing that is seen.
    whole = (values.double() / grid).round() * grid
    moved = with_noise(whole + 0.4 * grid, 2.0, 1.0, b"seed", "release")
    assert moved.equal(with_noise(whole, 2.0, 1.0, b"seed", "release"))
    assert not found.equal(with_noise(values.double(), 2.0, 1.0, b"seed", "another release"))
