"""Matching of neurons: golden values, laws, and a slow obvious reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.federated import Matching, match_layer
from phalanx.federated.matching import Prior, benefit
from phalanx.randomness import generator


def slow_benefit(rows, members, num_networks, num_new, matching):
    """The formula entry by entry; `members` lists the rows of each global neuron."""
    s, s0 = 1 / matching.variance, 1 / matching.prior_variance
    table = np.zeros((len(rows), len(members) + num_new))
    for number, row in enumerate(rows):
        for place, own in enumerate(members):
            gain = matching.popularity_scale * math.log(len(own) / (num_networks - len(own)))
            S = s0 + s * len(own)
            for feature, value in enumerate(row):
                G = s * sum(one[feature] for one in own)
                gain += (s * value + G) ** 2 / (S + s) - G**2 / S
            table[number, place] = gain
        for q in range(1, num_new + 1):
            gain = sum((s * value) ** 2 / (s0 + s) for value in row)
            gain += 2 * math.log(matching.mass / num_networks) - 2 * math.log(q)
            table[number, len(members) + q - 1] = gain
    return table


def test_golden_matrix():
    placed = np.array([[0.1, 0.9], [0.9, 0.2], [-1.0, -1.0]])
    matching = Matching(variance=0.5, prior_variance=2.0, mass=1.0)
    prior = Prior(0.0, 0.5, 2.0, matching)
    found = benefit(np.eye(2), placed, np.ones(3), 3, 2, prior)
    golden = [
        [-0.902739, 0.498150, -3.697405, -0.597225, -1.983519],
        [0.519483, -0.746294, -3.697405, -0.597225, -1.983519],
    ]
    np.testing.assert_allclose(found, golden, atol=1e-6)
    two = match_layer([torch.from_numpy(placed), torch.eye(2).double()], matching)
    assert two.assignments[1].tolist() == [1, 0]


@given(st.integers(0, 2**20), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_benefit_is_the_slow_one(seed, units, width, features):
    source = np.random.default_rng(seed)
    matching = Matching(*source.uniform(0.1, 3, 3), popularity_scale=source.uniform(0, 3))
    rows = source.normal(size=(units, features))
    members = [list(source.normal(size=(source.integers(1, 4), features))) for _ in range(width)]
    prior = Prior(0.0, 1 / matching.prior_variance, 1 / matching.variance, matching)
    sums, counts = (
        np.stack([np.sum(own, axis=0) for own in members]),
        np.array([*map(len, members)]),
    )
    found = benefit(rows, sums, counts, 5, units, prior)
    np.testing.assert_allclose(found, slow_benefit(rows, members, 5, units, matching), atol=1e-9)


@given(
    st.integers(0, 2**20),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.sampled_from([0.01, 0.3, 1.0, 5.0]),
    st.sampled_from([0.01, 1.0, 7.0]),
    st.sampled_from([None, 1, 9]),
    st.sampled_from(["fixed", "empirical"]),
)
def test_laws(seed, widths, variance, mass, max_width, hyper):
    atoms = [torch.randn(width, 3, generator=generator(seed, j)) for j, width in enumerate(widths)]
    matching = Matching(variance, mass=mass, max_width=max_width, hyper=hyper)
    found = match_layer(atoms, matching, seed=seed)
    again = match_layer(atoms, matching, seed=seed)
    assert all(map(torch.equal, found.assignments, again.assignments))
    width = len(found.counts)
    assert max(widths) <= width <= sum(widths)
    assert max_width is None or width <= max(max_width, *widths)
    assert sorted(torch.cat(found.assignments).unique().tolist()) == list(range(width))
    means, counts = torch.zeros(width, 3).double(), torch.zeros(width).long()
    for own, chosen in zip(atoms, found.assignments, strict=True):
        assert len(chosen) == len(own) == len(chosen.unique())
        means[chosen] += own.double()
        counts[chosen] += 1
    assert torch.equal(counts, found.counts)
    torch.testing.assert_close(found.atoms, (means / counts[:, None]).float())
    if hyper == "fixed":
        assert list(found.objective) == sorted(found.objective)


def test_the_objective_rises_by_what_the_benefit_says():
    """Placing one network after the others: the difference of two objectives is its benefit."""
    from phalanx.federated.matching import _Globals

    atoms = [torch.randn(4, 3, generator=generator(j, "rows")) for j in range(3)]
    for hyper in ("fixed", "empirical"):
        state = _Globals(atoms, Matching(mass=1.0, hyper=hyper))
        state._remove(2)
        before, width, new = state.objective(), len(state.counts), 4
        gains = benefit(state.rows[2], state.sums, state.counts, 3, new, state.prior)
        alone = [(state.counts[one] == 1).sum() for one in state.assignments]
        state._match(2)
        after = [(state.counts[one] == 1).sum() for one in state.assignments]
        unseen = 2 * sum(
            math.lgamma(a + 1) - math.lgamma(b + 1)
            for a, b in zip(alone[:2], after[:2], strict=True)
        )
        total = gains[np.arange(4), state.assignments[2]].sum()
        assert state.objective() - before == pytest.approx(total + unseen), width


def test_permuted_copies_are_recovered():
    rows = torch.randn(60, 20, generator=generator(0, "rows"))
    for variance in (1.0, 0.1, 0.01):
        for noise in (0.0, 1e-3):
            orders = [torch.randperm(60, generator=generator(j, "order")) for j in range(4)]
            copies = [
                rows[one] + noise * torch.randn(60, 20, generator=generator(j, "noise"))
                for j, one in enumerate(orders)
            ]
            found = match_layer(copies, Matching(variance, mass=1.0))
            assert found.counts.tolist() == [4] * 60
            places = [
                torch.empty(60).long().scatter(0, o, a)
                for o, a in zip(orders, found[0], strict=True)
            ]
            assert all(torch.equal(places[0], one) for one in places)
            torch.testing.assert_close(found.atoms[places[0]], rows, atol=5 * noise + 1e-6, rtol=0)
            shrunk = match_layer(copies, Matching(variance, mass=1.0, estimator="map")).atoms
            torch.testing.assert_close(shrunk, found.atoms * 4 / (4 + variance))


def test_limits():
    """Small variances keep all neurons apart, large ones with little mass merge all they may."""
    atoms = [torch.randn(width, 8, generator=generator(width, "limits")) for width in (5, 7, 6)]
    apart = match_layer(atoms, Matching(variance=1e-4))
    assert len(apart.counts) == 18
    merged = match_layer(atoms, Matching(variance=100.0, mass=1e-6))
    assert len(merged.counts) == 7
    assert match_layer(atoms[:1]).assignments[0].tolist() == list(range(5))


def test_refusals():
    with pytest.raises(ValueError, match="at least 1 network"):
        match_layer([])
    with pytest.raises(ValueError, match=r"as many features.*\(2, 3\), \(2, 4\)"):
        match_layer([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match=r"NaN or Inf from networks \[1\]"):
        match_layer([torch.zeros(1, 1), torch.full((1, 1), torch.nan)])
    with pytest.raises(ValueError, match="variance must be finite and above 0"):
        Matching(variance=0.0)
