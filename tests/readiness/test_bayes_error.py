"""Estimators of the Bayes error against brute force, closed forms and scikit-learn's own checks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree as reference_tree
from scipy.spatial.distance import cdist
from sklearn.utils.estimator_checks import parametrize_with_checks

from phalanx import readiness
from phalanx.readiness import (
    HenzePenrose,
    KernelDensity,
    NearestNeighborError,
    NearestNeighborExtrapolation,
    NearestNeighborPosterior,
    NeighborhoodImpurity,
    NeighborSearch,
    nearest_neighbors,
)

ALL = [
    HenzePenrose(),
    KernelDensity(),
    NearestNeighborError(),
    NearestNeighborError(test_fraction=0.25),
    NearestNeighborExtrapolation(),
    NearestNeighborPosterior(k=3),
    NeighborhoodImpurity(k=3),
]


@parametrize_with_checks(ALL)
def test_scikit_learn_is_content(estimator, check):
    check(estimator)


def brute_force(queries, references, k, own):
    apart = np.square(queries[:, None].astype(float) - references[None]).sum(axis=2)
    if own:
        np.fill_diagonal(apart, np.inf)
    return np.argsort(apart, axis=1, kind="stable")[:, :k]


@settings(max_examples=20)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 40),
    st.booleans(),
)
def test_any_blocks_find_the_neighbours_of_brute_force(seed, dim, k, step, own):
    draw = np.random.default_rng(seed)
    dtype = draw.choice([np.float32, np.float64])
    whole = draw.integers(0, 3, (40, dim)) if seed % 2 else draw.normal(size=(40, dim)) * 1e-3
    references = (whole + draw.choice([0, 1e6 if dtype == np.float64 else 100])).astype(dtype)
    queries = references if own else references[::3] + dtype(0.5)
    expected = brute_force(queries, references, k, own)
    for max_bytes in (1, 10**4, 10**8):
        search = NeighborSearch(queries, k, leave_one_out=own, max_bytes=max_bytes)
        for start in range(0, 40, step):
            search.add(references[start : start + step])
        assert (search.indices == expected).all()


def test_cosine_neighbours_are_of_the_smallest_angle():
    draw = np.random.default_rng(0)
    queries, references = draw.normal(size=(20, 3)), draw.normal(size=(50, 3))
    distances, indices = nearest_neighbors(queries, references, 4, "cosine")
    expected = cdist(queries, references, "cosine")
    assert (indices == np.argsort(expected, axis=1)[:, :4]).all()
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :4], atol=1e-12)


def test_duplicates_and_constants_are_at_distance_0():
    points = np.full((300, 5), 1e8) + 0.1
    distances, indices = nearest_neighbors(points)
    assert (distances == 0).all()
    assert indices[:, 0].tolist() == [1, *[0] * 299]


@given(st.floats(0, 1), st.integers(2, 1000))
def test_cover_hart_and_its_inverse(share, num_classes):
    a = readiness.chance_error(num_classes)
    e = share * a
    b = readiness.cover_hart(e, num_classes)
    assert b == pytest.approx(a * (1 - np.sqrt(1 - min(share, 1))), abs=1e-12)
    assert e / 2 <= b + 1e-15 <= e + 1e-12
    assert readiness.inverse_cover_hart(b, num_classes) == pytest.approx(e, abs=1e-12)
    assert readiness.cover_hart(readiness.inverse_cover_hart(e, num_classes), num_classes) == (
        pytest.approx(e, abs=1e-7)  # the map has an infinite slope at chance
    )


def test_the_lower_bound_of_two_classes_holds_for_every_posterior():
    """The asymptotic kNN error at a point of posterior p, ties broken at random."""
    from scipy.stats import binom

    p = np.linspace(0, 0.5, 501)
    for k in range(2, 40):
        rest = binom.sf(k / 2, k, p) + 0.5 * binom.pmf(k / 2, k, p)
        error = p * (1 - rest) + (1 - p) * rest
        bounds = [readiness.neighbor_lower_bound(one, k, 2) for one in error]
        assert (np.array(bounds) <= p + 1e-12).all()


def test_clopper_pearson_covers():
    draw = np.random.default_rng(1)
    for share in (0.02, 0.4):
        counts = draw.binomial(200, share, 400)
        found = [readiness.clopper_pearson(one, 200, 0.9) for one in counts]
        assert np.mean([low <= share <= high for low, high in found]) > 0.87
    assert readiness.clopper_pearson(5, 5)[1] == 1


def test_bayes_errors_of_gaussians_agree():
    for distance in (0.3, 2.0, 5.0):
        closed = readiness.two_gaussians_bayes_error(distance)
        assert readiness.simplex_gaussians_bayes_error(2, distance) == pytest.approx(
            closed, abs=1e-12
        )
        risk = readiness.two_gaussians_neighbor_risk(distance)
        assert readiness.cover_hart(risk, 2) <= closed <= risk


def test_noise_moves_the_error_of_gaussians_as_the_formulas_say():
    for prior in (0.5, 0.2):
        clean = readiness.two_gaussians_bayes_error(2.0, prior)
        for rate in (0.0, 0.1, 0.5, 1.0):
            matrix = readiness.uniform_noise(rate, 2)
            exact = readiness.two_gaussians_bayes_error(2.0, prior, matrix)
            assert readiness.noisy_bayes_error(clean, rate, 2) == pytest.approx(exact, abs=1e-12)
        for rates in ([0.3, 0.1], [0.9, 0.0], [0.8, 0.7], [0.0, 0.0]):
            matrix = readiness.class_noise(np.array(rates))
            exact = readiness.two_gaussians_bayes_error(2.0, prior, matrix)
            low, high = readiness.noisy_bayes_error_bounds(clean, matrix)
            assert low - 1e-12 <= exact <= high + 1e-12
            x = np.linspace(-10, 12, 40001)
            density = np.stack(
                [(1 - prior) * np.exp(-(x**2) / 2), prior * np.exp(-((x - 2) ** 2) / 2)]
            )
            grid = readiness.bayes_error_of_posteriors(
                (density / density.sum(axis=0)).T, matrix, density.sum(axis=0)
            )
            assert grid == pytest.approx(exact, abs=1e-7)


@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0, 1))
def test_uniform_noise_evolves_every_posterior_exactly(seed, num_classes, rate):
    posteriors = np.random.default_rng(seed).dirichlet(np.full(num_classes, 0.3), 30)
    clean = readiness.bayes_error_of_posteriors(posteriors)
    noisy = readiness.bayes_error_of_posteriors(
        posteriors, readiness.uniform_noise(rate, num_classes)
    )
    assert noisy == pytest.approx(readiness.noisy_bayes_error(clean, rate, num_classes), abs=1e-12)
    matrix = np.random.default_rng(seed).dirichlet(np.full(num_classes, 0.3), num_classes)
    low, high = readiness.noisy_bayes_error_bounds(clean, matrix)
    assert low - 1e-12 <= readiness.bayes_error_of_posteriors(posteriors, matrix) <= high + 1e-12


def test_injected_noise_has_its_rate():
    labels = np.zeros(20000, dtype=np.int64)
    noisy = readiness.redraw_labels(labels, 0.3, 4, torch.Generator().manual_seed(0))
    assert abs((noisy != 0).mean() - 0.3 * 0.75) < 4 * np.sqrt(0.225 * 0.775 / 20000)
    matrix = np.array([[0.7, 0.2, 0.1], [0, 1, 0], [0, 0, 1.0]])
    noisy = readiness.transition_labels(labels, matrix, torch.Generator().manual_seed(0))
    assert np.abs(np.bincount(noisy) / 20000 - matrix[0]).max() < 0.015
    assert (labels == 0).all()


def test_two_points_to_a_neighbourhood_are_leave_one_out():
    draw = np.random.default_rng(0)
    points, labels = draw.normal(size=(200, 3)), draw.integers(0, 3, 200)
    found = NeighborhoodImpurity(k=2).fit(points, labels)
    assert found.upper_ == pytest.approx(NearestNeighborError().fit(points, labels).upper_)


def test_the_tree_is_scipys_and_survives_duplicates():
    draw = np.random.default_rng(0)
    points = draw.normal(size=(120, 3))
    parents = readiness.minimum_spanning_tree(points)
    length = np.linalg.norm(points[1:] - points[parents[1:]], axis=1).sum()
    assert length == pytest.approx(reference_tree(cdist(points, points)).sum(), abs=1e-8)
    twice = np.repeat(points, 2, axis=0)
    parents = readiness.minimum_spanning_tree(twice)
    doubled = np.linalg.norm(twice[1:] - twice[parents[1:]], axis=1).sum()
    assert doubled == pytest.approx(length, abs=1e-8)


def test_kernel_densities_of_far_and_of_shuffled_classes():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 250)
    points = draw.normal(size=(250, 2))
    assert KernelDensity().fit(points + 50 * labels[:, None], labels).upper_ < 1e-6
    assert KernelDensity(bandwidth=2.0).fit(points, labels).upper_ > 0.44
    for max_bytes in (10**5, 10**7):
        found = KernelDensity(max_bytes=max_bytes).fit(points, labels).upper_
        assert found == pytest.approx(KernelDensity().fit(points, labels).upper_)


def test_estimates_of_two_gaussians():
    points, labels = readiness.sample_simplex_gaussians(
        2000, 2, 2.0, 2, torch.Generator().manual_seed(0)
    )
    truth = readiness.two_gaussians_bayes_error(2.0)
    risk = readiness.two_gaussians_neighbor_risk(2.0)
    error = 3 * np.sqrt(risk * (1 - risk) / 2000)
    for one in (NearestNeighborError(), NeighborhoodImpurity(), HenzePenrose()):
        found = one.fit(points, labels)
        assert abs(found.upper_ - risk) < 1.5 * error
        assert abs(found.lower_ - readiness.cover_hart(risk, 2)) < 1.5 * error
        assert found.lower_ <= truth + error
    assert NearestNeighborPosterior().fit(points, labels).leave_one_out_ < truth  # no bound


def test_shuffled_labels_are_chance():
    points, labels = np.random.default_rng(0).normal(size=(1500, 3)), np.arange(1500) % 3
    np.random.default_rng(1).shuffle(labels)
    for one in (NearestNeighborError(), NeighborhoodImpurity(), HenzePenrose()):
        assert abs(one.fit(points, labels).upper_ - 2 / 3) < 0.05


def test_intrinsic_dimension_of_a_plane_in_space():
    plane = np.random.default_rng(0).uniform(size=(1500, 2)) @ np.ones((2, 6)) ** [[1], [2]]
    plane = plane * [1, 2, 3, 4, 5, 6] + np.random.default_rng(1).uniform(size=(1500, 1))
    assert 1.7 < readiness.two_nearest_dimension(plane) < 2.3


def test_bad_data_are_refused_in_words(subtests):
    good = np.arange(12.0).reshape(6, 2), np.array([0, 1] * 3)
    cases = {
        "Input X contains NaN": (np.where(good[0] == 3, np.nan, good[0]), good[1]),
        "at least 2 classes": (good[0], np.zeros(6)),
        "minimum of 2 is required": (good[0][:1], good[1][:1]),
        "inconsistent numbers of samples": (good[0], good[1][:5]),
    }
    for message, (points, labels) in cases.items():
        with subtests.test(message), pytest.raises(ValueError, match=message):
            NearestNeighborError().fit(points, labels)
    with pytest.raises(ValueError, match="num_classes must be at least the 2 classes"):
        NearestNeighborError(num_classes=1).fit(*good)
    with pytest.raises(ValueError, match="k must be from 1"):
        NearestNeighborError(k=6).fit(*good)
