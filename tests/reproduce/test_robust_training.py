"""Recipes that train under many rules, at tiny sizes: every figure is there, and in its place."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import SGD

from phalanx.attacks import FixedWorkers, NotFinite
from phalanx.data import Digits
from phalanx.experiments import grid, measure, train_run
from phalanx.reproduce import LearningFromHistory, ResamplingAndBucketing, Scope, reproduce
from phalanx.reproduce.base import above, points
from phalanx.reproduce.resampling import most_copies
from phalanx.reproduce.robust_training import OtherTest, robust_rules

DIGITS = Digits()

HISTORY = LearningFromHistory(
    num_workers=11, num_byzantine=2, steps=2, tail_steps=2, tail_workers=6
)
MIXING = ResamplingAndBucketing(
    num_workers=11, num_byzantine=2, few_byzantine=1, num_honest=6, steps=2
)


@pytest.fixture(scope="module", params=[HISTORY, MIXING], ids=lambda one: one.name)
def done(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PHALANX_DATA", raising=False)
        return reproduce(request.param, tmp_path_factory.mktemp("out"), size="quick", jobs=1)


def rows(table):
    return {row[0]: dict(zip(table.headers[1:], row[1:], strict=True)) for row in table.rows}


def test_every_table_holds_the_mean_and_the_figures_of_all_its_rules(done):
    for table in done.findings.tables:
        found = rows(table)
        assert set(found) == {"mean", "Krum", "median", "RFA", "centred clipping"}
        for row in found.values():
            ours = [value for name, value in row.items() if "paper" not in name]
            assert any(value is not None for value in ours)
            assert all(0 <= value <= 100 for value in ours if value is not None)


def test_findings_are_written_with_the_papers_figures_and_a_verdict_each(done):
    content = json.loads((done.folder / "findings.json").read_text())
    assert len(content["findings"]) >= 6
    assert all(finding["same"] in ("yes", "partly", "no") for finding in content["findings"])
    assert "scikit-learn's digits" in content["notes"][0]
    assert "%" in content["answer"]


PAPER = {
    "learning-from-history": [
        ("Under attack: a little is enough", "RFA", "paper, beta 0.9", 49.6),
        ("Under attack: a little is enough", "centred clipping", "paper, beta 0.99", 88.8),
    ],
    "resampling": [
        ("Mimic", "Krum", "non-iid, alone, paper", 37.3),
        ("Mimic", "median", "non-iid, bucketing, paper", 78.6),
        ("Long tail, no attack", "median", "non-iid, alone, paper", 80.4),
    ],
}


def test_the_papers_figures_stand_where_they_belong(done):
    tables = {table.title: rows(table) for table in done.findings.tables}
    for title, rule, column, figure in PAPER[done.recipe.name]:
        assert tables[title][rule][column] == figure


def test_messages_are_used_as_often_as_fits_the_bound(subtests):
    for workers, byzantine, most in [(25, 5, 2), (25, 3, 4), (24, 3, 3), (11, 2, 2), (9, 4, 1)]:
        with subtests.test(workers=workers, byzantine=byzantine):
            assert most_copies(workers, byzantine) == most


def accuracy(seeds=(0,), data=DIGITS, **options):
    sizes = {"num_workers": 5, "batch_size": 20, "steps": 20, "evaluate_every": 1}
    fixed = {"data": data, "optimizer": partial(SGD, lr=0.1), **sizes, **options}
    return points(measure(grid(train_run, {"seed": seeds}, fixed), jobs=1))


def test_an_accuracy_is_the_mean_over_seeds_and_the_end_of_a_run():
    first, second, both = (accuracy(seeds) for seeds in ([0], [1], [0, 1]))
    assert accuracy() == first
    assert 20 < first < 100
    assert both == pytest.approx((first + second) / 2, abs=0.1)


def test_a_learning_rate_that_drops_at_once_learns_less():
    assert accuracy(milestones=(1,)) < accuracy()


def test_a_rule_that_stops_has_no_accuracy():
    assert accuracy(attack=NotFinite(), byzantine=FixedWorkers([0])) is None
    assert above(10.0, None)
    assert not above(None, 10.0)


def test_other_data_may_be_tested_on(subtests):
    train, test = DIGITS.load().train, DIGITS.load().test
    with subtests.test("the first"):
        found = OtherTest(DIGITS, first=7).load()
        assert len(found.test) == 7
        assert torch.equal(found.test[:][1], test[:7][1])
        assert torch.equal(found.train[:][0], train[:][0])
    with subtests.test("a long tail"):
        counts = OtherTest(DIGITS, tail=0.6).load().test[:][1].bincount()
        assert counts[0] > 5 * counts[-1]
        assert accuracy(data=OtherTest(DIGITS, tail=0.6)) != accuracy()


def test_rules_are_told_what_to_survive():
    told = robust_rules(3, radius=2.0, iterations=4)
    assert next(iter(told)) == "mean"
    assert all("num_byzantine=3" in repr(rule) for name, rule in told.items() if name != "mean")


def test_data_is_taken_from_a_file_or_a_folder_and_never_silently_replaced(tmp_path):
    told = "scikit-learn's digits, 8 x 8 pixels; at size full MNIST (mnist.npz)"
    for scope in (Scope(), Scope("default", tmp_path)):
        assert scope.images(["mnist.npz"], "MNIST") == (DIGITS, told, False)
    for scope in (Scope("full"), Scope("full", tmp_path)):
        with pytest.raises(ValueError, match=r"folder with mnist\.npz or m\.npz at size full, got"):
            scope.images(("mnist.npz", "m.npz"), "MNIST")
    (tmp_path / "other.csv").touch()
    with pytest.raises(ValueError, match=r"mnist\.npz at size full, got .*other\.csv"):
        Scope("full", tmp_path / "other.csv").file("mnist.npz")
    np.savez(tmp_path / "b.npz", x_train=np.zeros((20, 4, 4)), y_train=np.arange(20) % 2)
    for place in (tmp_path, tmp_path / "b.npz"):
        source, origin, published = Scope("full", place).images(("a.npz", "b.npz"), "MNIST")
        assert (origin, published) == ("b.npz, 16 training images", True)
        assert source.load().num_classes == 2
        assert not Scope(data=place).images(("b.npz",), "MNIST").published
