"""FeeBee's scores against their closed forms, and diagnoses of transformations."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import NeighborhoodComponentsAnalysis

from phalanx import readiness
from phalanx.readiness import (
    NOISE_RATES,
    NearestNeighborError,
    Score,
    diagnose_transformation,
    feebee_score,
    feebee_scores,
    inject_noise,
)

IMAGES, DIGITS = load_digits(return_X_y=True)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_scores_of_known_estimates(num_classes):
    a = 1 - 1 / num_classes
    best = 0.03
    oracle = [(rate, readiness.noisy_bayes_error(best, rate, num_classes)) for rate in NOISE_RATES]
    assert feebee_score(oracle, best, num_classes) == Score(0, 0)
    zero = feebee_score([(rate, 0.0) for rate in NOISE_RATES], best, num_classes)
    assert (zero.over, zero.under) == (0, pytest.approx(1))
    high = feebee_score([(rate, 2.0) for rate in NOISE_RATES], best, num_classes)
    assert (high.over, high.under) == (pytest.approx(1 - best / a), 0)
    several = [(rate, value) for rate in NOISE_RATES for value in (0.1, 0.3)]
    assert feebee_score(several, best, num_classes) == feebee_score(
        several[::-1], best, num_classes
    )


def test_noise_is_the_same_for_all_estimators_and_for_a_run_that_goes_on():
    estimators = {"one": NearestNeighborError(), "again": NearestNeighborError(max_bytes=10**5)}
    options = {"rates": (0.0, 0.4), "runs": 2}
    whole = list(inject_noise(estimators, IMAGES[:300], DIGITS[:300], **options))
    assert len(whole) == 8
    assert [one.lower for one in whole[::2]] == [one.lower for one in whole[1::2]]
    rest = list(inject_noise(estimators, IMAGES[:300], DIGITS[:300], known=whole[:3], **options))
    assert [(one.estimator, one.lower) for one in rest] == [
        (one.estimator, one.lower) for one in whole[3:]
    ]


def test_the_nearest_neighbour_follows_noise_better_than_nine():
    estimators = {str(k): NearestNeighborError(k=k) for k in (1, 9)}
    estimators["none"] = lambda features, labels: (np.nan, 0.0)
    found = list(inject_noise(estimators, IMAGES[:800], DIGITS[:800], rates=(0, 0.2, 0.4), runs=1))
    scores = feebee_scores(found, 0.02, 10)
    assert scores["raw", "1"][0].total < 0.06
    assert scores["raw", "none"] is None
    assert "NaN" in found[-1].failure
    with pytest.raises(ValueError, match="must do without labels, got nca"):
        next(
            inject_noise(
                estimators,
                IMAGES,
                DIGITS,
                transformations={"nca": NeighborhoodComponentsAnalysis()},
            )
        )


def test_a_linear_map_keeps_safety_and_noise_slows_neighbours():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 1200)
    inputs = draw.normal(size=(1200, 3)) + 1.5 * labels[:, None]
    plain = diagnose_transformation(lambda x: x, inputs, labels)
    turned = diagnose_transformation(
        lambda x: x @ np.linalg.qr(np.ones((3, 3)) + np.eye(3))[0], inputs, labels
    )
    assert turned.brier == pytest.approx(plain.brier, abs=1e-3)
    noise = draw.normal(size=(1200, 60))
    noisy = diagnose_transformation(lambda x: x, np.hstack([inputs, noise]), labels)
    assert noisy.errors[-1] > plain.errors[-1] + 0.05
    assert noisy.intrinsic_dimension > plain.intrinsic_dimension + 5
    blind = diagnose_transformation(lambda x: noise[: len(x)], inputs, labels)
    assert blind.brier > plain.brier + 0.1
    assert blind.errors[-1] > 0.4


def test_safety_orders_transformations_as_neighbours_do():
    found = [
        diagnose_transformation(PCA(size, random_state=0), IMAGES, DIGITS) for size in (1, 3, 9)
    ]
    assert sorted(found, key=lambda one: one.brier) == sorted(found, key=lambda one: one.errors[-1])
    nca = diagnose_transformation(
        NeighborhoodComponentsAnalysis(4, max_iter=3, random_state=0), IMAGES[:400], DIGITS[:400]
    )
    assert nca.sizes[-1] == 100
    with pytest.raises(ValueError, match="rows must be at least 20"):
        diagnose_transformation(PCA(1), IMAGES[:10], DIGITS[:10])


def test_the_safety_gap_is_bounded_by_the_probe():
    """On a grid where everything is known: R_f - R <= 2 sqrt(L_g) for two classes."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        eta = draw.beta(0.4, 0.4, (20, 20))  # two coordinates; the transformation keeps the first
        kept = eta.mean(axis=1)
        error, error_kept = np.minimum(eta, 1 - eta).mean(), np.minimum(kept, 1 - kept).mean()
        probe = np.clip(kept + draw.normal(size=20) * 0.1, 0, 1)
        gap = np.square(probe[:, None] - eta).mean()
        assert error_kept - error <= 2 * np.sqrt(gap) + 1e-12
