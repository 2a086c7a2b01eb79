"""TopAgg: what votes are, how far one voter moves them, and what they say on average."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from phalanx.privacy import TopAgg, top_k_votes
from phalanx.privacy.noise import (
    aes_blocks,
    box_muller,
    shake_blocks,
    standard_normal,
    with_noise,
)
from phalanx.randomness import generator

MODES = ("sign", "stochastic", "values")


@given(
    rows=st.lists(
        st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1e-30, 7.5]), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(1, 8),
)
def test_votes_have_k_entries_and_norm_sqrt_k(rows, k):
    gradients = torch.tensor(rows)
    for mode in MODES:
        votes = top_k_votes(gradients, k, mode, generator=generator(0))
        for own, vote in zip(gradients, votes, strict=True):
            if not own.any():
                assert not vote.any()
                continue
            order = sorted(range(6), key=lambda place: (-abs(own[place].item()), place))
            kept = set(order[:k])
            assert set(vote.nonzero().flatten().tolist()) <= kept
            assert vote.norm() <= min(k, 6) ** 0.5 * (1 + 1e-6)
            if mode != "values":
                assert vote.abs().sum() == min(k, 6)
            else:
                torch.testing.assert_close(vote.norm().item(), min(k, 6) ** 0.5)


def test_one_voter_moves_a_sum_by_at_most_two_roots_of_k_and_does_so_by_flipping_signs():
    source, k = generator(1), 5
    for mode in MODES:
        pairs = torch.randn(2, 3000, 12, generator=source)
        one, other = (top_k_votes(rows, k, mode, generator=source) for rows in pairs)
        assert (one - other).norm(dim=1).max() <= TopAgg(k).sensitivity * (1 + 1e-6)
    own = torch.randn(1, 12, generator=source)
    moved = top_k_votes(own, k) - top_k_votes(-own, k)
    assert moved.norm().item() == pytest.approx(TopAgg(k).sensitivity, rel=1e-6)


def test_stochastic_signs_are_unbiased():
    own, draws = torch.tensor([0.5, -2.0, 0.1, 1.0]), 10_000
    votes = top_k_votes(own.expand(draws, -1), 3, "stochastic", generator=generator(2))
    wanted = torch.tensor([0.25, -1.0, 0.0, 0.5])
    assert ((votes.mean(dim=0) - wanted).abs() <= 3 / draws**0.5).all()
    capped = top_k_votes(own.expand(draws, -1), 3, "stochastic", 0.75, generator(3)).mean(dim=0)
    assert abs(capped[0].item() - 2 / 3) < 3 / draws**0.5
    assert capped[1].item() == -1.0


def test_without_noise_or_threshold_it_is_a_majority_vote():
    gradients = torch.randn(7, 9, generator=generator(4))
    found = TopAgg(9, 0.0, 0.0, "sign")(gradients, torch.zeros(9))
    assert found.equal(gradients.sign().sum(dim=0).sign())


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
