"""Recipes that train under many rules, at tiny sizes: every figure is there, and in its place."""

import json
from dataclasses import replace

import numpy as np
import pytest
from torch.utils.data import TensorDataset

from phalanx.aggregation import Mean
from phalanx.attacks import NotFinite
from phalanx.data import Digits
from phalanx.models import MLP
from phalanx.reproduce import LearningFromHistory, ResamplingAndBucketing, reproduce
from phalanx.reproduce.base import above
from phalanx.reproduce.full_runs import images
from phalanx.reproduce.training_runs import Trials, robust_rules

HISTORY = LearningFromHistory(num_workers=7, num_byzantine=1, num_manipulating=2, steps=2)
MIXING = ResamplingAndBucketing(num_workers=11, num_byzantine=1, num_honest=6, steps=2)


@pytest.fixture(scope="module", params=[HISTORY, MIXING], ids=lambda one: one.name)
def done(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PHALANX_DATA", raising=False)
        return reproduce(request.param, tmp_path_factory.mktemp("out"))


def rows(table):
    return {row[0]: dict(zip(table.headers[1:], row[1:], strict=True)) for row in table.rows}


@pytest.mark.slow
def test_every_table_holds_the_mean_and_the_figures_of_all_its_rules(done):
    for table in done.findings.tables:
        found = rows(table)
        assert "mean" in found
        for rule, row in found.items():
            ours = [value for name, value in row.items() if "ours" in name]
            assert ours
            # Mixing leaves the mean as it is: there is nothing to train.
            assert all(0 <= value <= 100 for value in ours if rule != "mean")
            assert any(value is not None for value in ours)


def test_findings_are_written_with_the_papers_figures_and_a_verdict_each(done):
    content = json.loads((done.folder / "findings.json").read_text())
    assert len(content["findings"]) >= 6
    for finding in content["findings"]:
        assert (finding["same"] == "—") == (finding["paper"] == "not quoted: not certain")
    assert "scikit-learn's digits" in content["notes"][0]
    assert "%" in content["answer"]


PAPER = {
    "learning-from-history": [
        ("Under attack: a little is enough", "RFA", "paper, beta 0.9", 49.6),
        ("Under attack: flipped labels", "Krum", "paper, beta 0.9", 6.2),
        ("Without attack", "mean", "paper, beta 0.0", 86.3),
    ],
    "resampling": [
        ("Mimic", "Krum", "non-iid, alone, paper", 37.3),
        ("Mimic", "median", "non-iid, bucketing, paper", 78.6),
        ("Long tail, no attack", "RFA", "iid, bucketing, paper", 98.8),
        ("Inner product manipulation", "RFA", "no momentum, bucketing, paper", 90.6),
        ("Flipped labels", "Krum", "no momentum, alone, paper", 1.0),
    ],
}


def test_the_papers_figures_stand_where_they_belong(done):
    tables = {table.title: rows(table) for table in done.findings.tables}
    for title, rule, column, figure in PAPER[done.recipe.name]:
        assert tables[title][rule][column] == figure


@pytest.mark.slow
@pytest.mark.timeout(600)  # two networks of convolutions, some 80 times each
@pytest.mark.parametrize(
    ("recipe", "name", "shape"),
    [(HISTORY, "cifar10.npz", (8, 8, 3)), (MIXING, "mnist.npz", (8, 8))],
    ids=["history", "mixing"],
)
def test_full_runs_train_on_the_papers_data_where_it_is(tmp_path, recipe, name, shape):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (450, *shape), dtype=np.uint8)
    np.savez(tmp_path / name, x_train=pixels, y_train=np.arange(450) % 10)
    found = reproduce(replace(recipe, steps=1), tmp_path / "out", data=tmp_path, full=True).findings
    assert f"{name}, 360 training images" in found.notes[0]
    assert any("Unlike in the paper" in note for note in found.notes)
    assert found.settings["samples_a_worker"] == 32
    assert any("0.9" in header for table in found.tables for header in table.headers)


@pytest.fixture
def trials():
    return Trials(Digits().load(), MLP, num_workers=5, samples=4, steps=20)


def test_an_accuracy_is_the_mean_over_seeds_and_the_end_of_a_run(trials):
    first = trials.accuracy(Mean())
    assert trials.accuracy(Mean()) == first
    assert 20 < first < 100
    second = Trials(**{**vars(trials), "seeds": (1,)}).accuracy(Mean())
    both = Trials(**{**vars(trials), "seeds": (0, 1)}).accuracy(Mean())
    assert both == pytest.approx((first + second) / 2, abs=0.1)


def test_a_learning_rate_that_drops_at_once_learns_less(trials):
    late, early = (
        Trials(**{**vars(trials), "drop_at": drop}).accuracy(Mean()) for drop in (None, 1)
    )
    assert early < late


def test_a_rule_that_stops_has_no_accuracy(trials):
    assert trials.accuracy(Mean(), NotFinite(), 1) is None
    assert above(10.0, None)
    assert not above(None, 10.0)


def test_other_data_may_be_tested_on(trials):
    inputs, targets = trials.splits.test[:]
    wrong = TensorDataset(inputs, (targets + 1) % 10)
    assert trials.accuracy(Mean(), test=wrong) < trials.accuracy(Mean()) - 20


def test_rules_are_told_what_to_survive():
    told = robust_rules(3, radius=2.0, iterations=4)
    assert next(iter(told)) == "mean"
    assert all("num_byzantine=3" in repr(rule) for name, rule in told.items() if name != "mean")


def test_data_is_taken_from_a_file_or_a_folder_or_else_said_to_be_another(tmp_path):
    assert images(None, ("mnist.npz",), "MNIST")[1:] == (
        "scikit-learn's digits, 8 x 8 pixels; full runs take MNIST where it is given",
        False,
    )
    assert images(tmp_path, ("mnist.npz",), "MNIST")[2] is False
    np.savez(tmp_path / "b.npz", x_train=np.zeros((20, 4, 4)), y_train=np.arange(20) % 2)
    for place in (tmp_path, tmp_path / "b.npz"):
        splits, origin, published = images(place, ("a.npz", "b.npz"), "MNIST")
        assert (origin, published) == ("b.npz, 16 training images", True)
        assert splits.num_classes == 2
