"""Feasibility studies: streamed is batch, edits are cold runs, verdicts are monotone and honest."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier, NeighborhoodComponentsAnalysis
from sklearn.preprocessing import StandardScaler
from torch import nn

from phalanx import readiness
from phalanx.readiness import Curve, Prices, Study, redraw_labels, successive_halving
from phalanx.readiness.feasibility import feasibility, samples_needed

IMAGES, DIGITS = load_digits(return_X_y=True)
TRAIN, TEST = slice(0, 1000), slice(1000, 1500)


def plain():
    return {"scaled": StandardScaler(), "pca": PCA(16, random_state=0), "few": lambda x: x[:, :9]}


def study(labels=DIGITS, target=0.9, transformations=None, **options):
    return Study(
        IMAGES[TRAIN],
        labels[TRAIN],
        IMAGES[TEST],
        labels[TEST],
        target,
        plain() if transformations is None else transformations,
        **options,
    )


def figures(answer):
    """All of an answer but the seconds."""
    told = asdict(answer)
    for one in told["curves"]:
        del one["seconds"]
    return told


def test_streamed_neighbours_are_those_of_the_whole_for_any_chunk():
    whole = KNeighborsClassifier(1).fit(IMAGES[TRAIN], DIGITS[TRAIN])
    expected = 1 - whole.score(IMAGES[TEST], DIGITS[TEST])
    for chunk in (37, 100, 5000):
        found = study(transformations={"raw": lambda x: x}, chunk=chunk, max_bytes=10**6).run()
        assert found.curves[0].errors[-1] == pytest.approx(expected)
        assert found.curves[0].sizes[-1] == 1000
        assert found.bayes_error == readiness.cover_hart(found.curves[0].errors[-1], 10)


@pytest.mark.parametrize("strategy", ["all", "halving"])
def test_mended_labels_are_a_cold_run_to_the_bit(strategy):
    noisy = redraw_labels(DIGITS, 0.4, 10, torch.Generator().manual_seed(0))
    warm = study(noisy, strategy=strategy)
    first = warm.run()
    assert first.verdict == "UNREALISTIC"
    mended = noisy.copy()
    mended[:1300] = DIGITS[:1300]
    asked = {"train": dict(enumerate(mended[TRAIN])), "test": dict(enumerate(mended[TEST]))}
    pulled = []
    original = {name: arm.embedding.transform for name, arm in warm.arms.items()}
    for arm in warm.arms.values():
        arm.embedding.transform = lambda x: pytest.fail("an embedding was computed")
    answer = warm.relabel(**asked)
    for name, arm in warm.arms.items():
        arm.embedding.transform = original[name]
    cold = study(mended, strategy=strategy).run()
    if strategy == "all":
        assert figures(answer) == figures(cold)
    assert figures(warm.run(watch=lambda *pull: pulled.append(pull))) == figures(cold)
    assert strategy == "halving" or not pulled


def test_little_memory_gives_the_same_answer():
    assert figures(study(max_bytes=10**4).run()) == figures(study().run())


def test_labels_that_a_transformation_was_fitted_to_start_it_over():
    nca = {"nca": NeighborhoodComponentsAnalysis(4, max_iter=3, random_state=0), "all": lambda x: x}
    noisy = redraw_labels(DIGITS, 0.2, 10, torch.Generator().manual_seed(0))
    warm = study(noisy, transformations=nca, strategy="all")
    warm.run()
    answer = warm.relabel(dict(enumerate(DIGITS[TRAIN])), dict(enumerate(DIGITS[TEST])))
    assert (answer.stopped, answer.clear) == ("waiting for run", False)
    assert figures(warm.run()) == figures(study(transformations=nca, strategy="all").run())


def test_a_supervised_transformation_is_not_measured_on_the_rows_it_saw():
    """Pure noise: what is fitted to labels looks better than chance on its own rows only."""
    draw = np.random.default_rng(0)
    inputs, labels = draw.normal(size=(700, 60)), draw.integers(0, 2, 700)
    nca = {"nca": NeighborhoodComponentsAnalysis(2, max_iter=20, random_state=0)}
    found = Study(inputs[:400], labels[:400], inputs[400:], labels[400:], 0.9, nca).run()
    assert found.curves[0].sizes[-1] == 200
    assert found.curves[0].errors[-1] > 0.4


def test_rows_added_and_removed_are_a_study_of_what_is_left():
    raw = {"raw": lambda x: x}
    warm = Study(IMAGES[:600], DIGITS[:600], IMAGES[TEST], DIGITS[TEST], 0.9, raw, strategy="all")
    warm.run()
    warm.add(IMAGES[600:1000], DIGITS[600:1000])
    assert warm.answer().stopped == "waiting for run"
    whole = study(transformations=raw).run()
    assert warm.run().curves[0].errors[-1] == whole.curves[0].errors[-1]
    gone = np.arange(0, 1000, 3)
    warm.remove(gone)
    left = np.setdiff1d(np.arange(1000), gone)
    cold = KNeighborsClassifier(1).fit(IMAGES[left], DIGITS[left])
    after = warm.answer()
    assert after.curves[0].errors[-1] == pytest.approx(1 - cold.score(IMAGES[TEST], DIGITS[TEST]))
    assert after.curves[0].sizes[-1] == len(left)
    with pytest.raises(ValueError, match="rows must be training rows that are there"):
        warm.remove([0])
    with pytest.raises(ValueError, match="labels must be one of"):
        warm.add(IMAGES[:1], [77])


def test_a_saved_study_goes_on(tmp_path):
    whole = study().run()
    warm = study()
    calls = itertools.count()

    def interrupt(*_):
        if next(calls) == 4:
            raise KeyboardInterrupt

    assert warm.run(watch=interrupt).stopped == "interrupted"
    warm.save(tmp_path)
    again = Study.load(tmp_path, warm_transformations := plain())
    assert again.answer().stopped == "waiting for run"
    assert figures(again.run()) == figures(whole)
    again.save(tmp_path)
    again = Study.load(tmp_path, warm_transformations)
    assert figures(again.relabel({0: int(DIGITS[0])})) == figures(whole)
    with pytest.raises(ValueError, match="got others for pca"):
        Study.load(tmp_path, plain() | {"pca": PCA(8)})
    (tmp_path / "study.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="must be a saved study"):
        Study.load(tmp_path, plain())


def test_time_that_is_over_gives_the_best_so_far():
    found = study(target=0.5)
    with pytest.raises(ValueError, match="nothing is known yet"):
        found.run(budget_s=1e-9)
    found.run()
    answer = found.run(budget_s=1e-9)
    assert answer.stopped == "finished"  # nothing was left to do


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_halving_finds_the_best_of_convex_curves_with_fewer_pulls(seed, num_arms):
    draw = np.random.default_rng(seed)
    ends, heights = draw.uniform(0, 0.5, num_arms), draw.uniform(0, 0.5, num_arms)
    powers = draw.uniform(0.2, 2, num_arms)
    paid = {str(arm): 0 for arm in range(num_arms)}

    def error(arm, pulls):
        paid[arm] = max(paid[arm], pulls)
        return ends[int(arm)] + heights[int(arm)] * pulls ** -powers[int(arm)]

    pulls = successive_halving(dict.fromkeys(paid, 30), error)
    assert pulls == paid
    final = {arm: error(arm, 30) for arm in list(paid)}
    best = min(final, key=final.get)
    assert pulls[best] == 30
    assert sum(pulls.values()) <= 30 * num_arms


def test_halving_spares_hopeless_transformations():
    hopeless = {f"pixel {i}": (lambda x, i=i: x[:, [i]]) for i in range(20, 27)}
    found = study(transformations={**hopeless, "all": lambda x: x}).run()
    sizes = {one.transformation: one.sizes[-1] for one in found.curves}
    assert sizes.pop("all") == 1000
    assert np.mean(list(sizes.values())) < 600
    assert found.transformation == "all"


def test_a_higher_target_is_never_more_realistic():
    noisy = redraw_labels(DIGITS, 0.3, 10, torch.Generator().manual_seed(1))
    found = study(noisy, transformations={"raw": lambda x: x})
    found.run()
    verdicts = []
    for target in np.linspace(0, 1, 51):
        found.target_accuracy = target
        verdicts.append(found.answer().verdict)
    assert verdicts == sorted(verdicts)  # REALISTIC, then UNREALISTIC
    assert set(verdicts) == {"REALISTIC", "UNREALISTIC"}
    found.target_accuracy = 1 - found.answer().bayes_error
    assert not found.answer().clear
    assert "Not yet clear: the target is within the interval" in found.answer().advice[0]
    assert readiness.ASYMPTOTIC in found.answer().advice


def test_noise_turns_the_verdict_and_more_transformations_never_raise_the_estimate():
    noisy = redraw_labels(DIGITS, 0.4, 10, torch.Generator().manual_seed(0))
    assert study(target=0.95, strategy="all").run().verdict == "REALISTIC"
    one = study(noisy, 0.95, {"pca": plain()["pca"]}, strategy="all").run()
    more = study(noisy, 0.95, strategy="all").run()
    assert more.verdict == "UNREALISTIC"
    assert more.bayes_error <= one.bayes_error
    truth = readiness.noisy_bayes_error(0.01, 0.4, 10)
    assert more.bayes_error == pytest.approx(truth, abs=0.05)
    assert study(noisy, 0.6).run().verdict == "REALISTIC"


def test_a_verdict_that_hangs_on_duplicates_or_on_few_rows_is_not_clear():
    draw = np.random.default_rng(0)
    inputs, labels = draw.normal(size=(1000, 5)), draw.integers(0, 2, 1000)
    both = np.r_[0:800, 800:1000]
    found = Study(
        inputs[:900],
        labels[:900],
        inputs[both],
        labels[both],
        0.9,
        plain() | {"pca": PCA(2), "few": lambda x: x[:, :3]},
    )
    answer = found.run()
    assert (answer.verdict, answer.clear) == ("REALISTIC", False)
    assert "no training rows the estimate is" in answer.unclear[0]
    points, classes = readiness.sample_simplex_gaussians(
        3000, 10, 4.0, 20, torch.Generator().manual_seed(0)
    )
    truth = readiness.simplex_gaussians_bayes_error(10, 4.0)
    study = Study(
        points[:2000],
        classes[:2000],
        points[2000:],
        classes[2000:],
        1 - 1.2 * truth,
        {"raw": lambda x: x},
    )
    answer = study.run()
    assert answer.verdict == "UNREALISTIC"  # which is wrong: the bound is asymptotic
    assert not answer.clear


def test_labels_to_mend_follow_the_line_of_uniform_noise():
    curve = Curve("x", 1, (100, 200), (0.5, 0.42), (0.4, 0.3), (0.25, 0.35), True, 1.0)
    found = feasibility((curve,), 0.9, 10, 1000, prices=Prices(0.5, 70))
    assert (found.wrong_labels, found.labels_to_check) == (200, 667)
    assert (found.cleaning_cost, found.failure_cost) == (333.5, 70)
    assert json.loads(json.dumps(asdict(found)))["verdict"] == "UNREALISTIC"


def test_samples_needed_follow_a_power_law_and_refuse_to_dream():
    sizes = tuple(range(100, 2100, 100))
    errors = tuple(2.0 * n**-0.5 for n in sizes)
    curve = Curve("x", 1, sizes, errors, errors, (0, 1), True, 1.0)
    target = 2.0 * 8000**-0.5
    assert samples_needed(curve, readiness.cover_hart(target, 10).item(), 10) in (8000, 8001)
    assert samples_needed(curve, 0.0, 10) is None
    assert samples_needed(curve, 1e-4, 10) is None  # more than ten times as many
    flat = Curve("x", 1, sizes, (0.3,) * 20, (0.3,) * 20, (0, 1), True, 1.0)
    assert samples_needed(flat, 0.1, 10) is None


def test_modules_and_texts_are_embedded():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.Dropout(0.5))
    found = study(transformations={"net": module}).run()
    assert module.training
    assert found.curves[0].dimension == 8 * 36
    assert found.bayes_error < 0.1
    texts = np.array([f"{'good' if i % 2 else 'bad'} film number {i}" for i in range(400)])
    labels = np.where(np.arange(400) % 2, "fine", "poor")
    answer = Study(texts[:300], labels[:300], texts[300:], labels[300:], 0.9).run()
    assert answer.verdict == "REALISTIC"


def test_default_transformations_of_numbers_run():
    found = Study(IMAGES[TRAIN], DIGITS[TRAIN], IMAGES[TEST], DIGITS[TEST], 0.9).run()
    assert found.verdict == "REALISTIC"
    names = [one.transformation for one in found.curves]
    assert names == ["raw", "standardised", "pca_8", "pca_32", "nca"]


def test_bad_data_get_an_error_or_a_finding(subtests):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(200, 3)), np.arange(200) % 2
    broken = x.copy()
    broken[5, 1] = np.nan
    errors = {
        "train_inputs inputs must be finite": (broken, y, x, y),
        "at least 2 classes": (x, y * 0, x, y * 0),
        "train must have a label for each of 200 rows, got 199": (x, y[:-1], x, y),
        "train_inputs must have at least 1 row": (x[:0], y[:0], x, y),
        "must be of one kind and shape": (x, y, x[:, :2], y),
        "must differ in more than blanks": (x, np.where(y, "a", "b"), x, np.where(y, "a ", "b")),
        "must not be empty or blank": (x, np.where(y, "a", " "), x, np.where(y, "a", " ")),
        "labels must be whole numbers": (x, y + 0.5, x, y),
    }
    for message, data in errors.items():
        with subtests.test(message), pytest.raises(ValueError, match=message):
            Study(*data, 0.9)
    rest = x + 1, y
    told = {
        "100 of 200 test rows are training rows": (x[:100], y[:100], x, y),
        "All features are constant": (x * 0, y, x * 0 + 1, y),
        "1 of 3 features are constant": (x * [1, 0, 1], y, *rest),
        "1 of 3 classes have no training rows": (x, y, x + 1, np.where(x[:, 0] > 1, 2, y)),
        "1 of 3 classes have one training row only": (x, np.r_[2, y[1:]], *rest),
        "1 of 3 classes have no test rows": (x, np.arange(200) % 3, *rest),
        "1 test rows are few": (x, y, x[:1] + 1, y[:1]),
    }
    for message, data in told.items():
        with subtests.test(message):
            found = Study(*data, 0.9, {"raw": lambda x: x}).run()
            assert any(message in one for one in found.findings)
    one = Study(x[:1], y[:1], x[1:], y[1:], 0.9, {"raw": lambda x: x}).run()
    assert one.verdict == "UNREALISTIC"
    with pytest.raises(ValueError, match="transformation bad must give"):
        Study(x, y, *rest, 0.9, {"bad": lambda x: x[:3]}).run()
