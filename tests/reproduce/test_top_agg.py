"""The recipe of DP-TopAgg: who wins by how much, by which data settings are chosen, and a run."""

import pytest
import torch

from phalanx.computations import ClippedGradient, TopAggGradient
from phalanx.data import Digits
from phalanx.experiments import Records, tuned
from phalanx.experiments.records import Record
from phalanx.models import Softmax
from phalanx.reproduce import Scope, TopAggRecipe
from phalanx.reproduce.private_training import FixedFeatures, private_run

RECIPE, SCOPE = TopAggRecipe(seeds=2, epsilons=(1.0, 4.0)).at("quick"), Scope("quick")


def found(accuracy):
    """Records in which the last setting is the best on held-out data."""

    def run(cells):
        records = []
        for cell in cells:
            one, rate = cell.labels, max(RECIPE.rates)
            best = one["setting"].endswith(f"rate {rate:g}")
            values = {"error": 0.0 if best else 1.0, "rate": rate if best else 0.0}
            values |= {"bound": RECIPE.shares[0] if one["method"] != "DP-SGD" else 0.3}
            values["test_accuracy"] = accuracy(one) if best else 1.0
            records.append(Record(one, values=values))
        return Records(records)

    return tuned(RECIPE.cells(SCOPE), "setting", "error", run)


def test_votes_win_where_every_seed_is_above_every_seed_in_most_cases():
    def clear(one):
        return 0.9 if one["method"] == "values" else 0.8 + one["seed"] / 100

    findings = RECIPE.findings(found(clear), SCOPE)
    assert [claim.holds for claim in findings.claims] == [[True], [True]]
    assert "votes (values) are above DP-SGD in 2 of 2 cases" in findings.answer

    def within_the_spread(one):
        return 0.81 if one["method"] == "values" else 0.8 + one["seed"] / 10

    findings = RECIPE.findings(found(within_the_spread), SCOPE)
    assert [claim.holds for claim in findings.claims] == [[False], [False]]

    def half(one):  # of the cases: not most of them
        return 0.9 if one["method"] == "sign" and one["epsilon"] == 1.0 else 0.8

    findings = RECIPE.findings(found(half), SCOPE)
    assert findings.claims[0].holds == [False]
    assert findings.answer.startswith("DP-TopAgg does not beat DP-SGD")
    assert "digits at 1 (sign)" in findings.answer


def test_features_are_those_of_an_image_by_itself():
    whole = FixedFeatures(Digits(), filters=4).load()
    assert whole.input_shape == (16,)
    inputs = whole.test[:][0]
    torch.testing.assert_close(inputs.mean(dim=1), torch.zeros(len(inputs)), rtol=0, atol=1e-5)
    assert FixedFeatures(Digits(), pooling=2).load().input_shape == (1, 4, 4)
    noise = FixedFeatures(Digits(), noise=1.0).load().train[:][0] - Digits().load().train[:][0]
    beyond = [(noise.abs() > x).double().mean().item() for x in (10.0, 40.0)]
    assert beyond[0] / beyond[1] == pytest.approx(8.0, rel=0.2)  # 4^1.5


def test_a_run_says_what_it_spent():
    pytest.importorskip("dp_accounting", reason="needs the extra phalanx[private]")
    # All samples in every step: accounting is a formula.
    sizes = {"epsilon": 50.0, "delta": 1e-5, "steps": 5, "batch_size": 800, "samples": 800}
    for compute in (ClippedGradient(0.3), TopAggGradient(0.1, "values")):
        told = private_run(data=Digits(), model=Softmax, compute=compute, rate=2.0, seed=0, **sizes)
        assert told["privacy"].startswith("(50, 1e-05)-differential privacy")
        assert told["test_accuracy"] > 0.2
