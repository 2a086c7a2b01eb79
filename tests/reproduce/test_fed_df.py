"""The recipe of FedDF: what the server distils on, and which records bear the claims out."""

import pytest
import torch

from phalanx.data import Digits
from phalanx.experiments import Records
from phalanx.experiments.records import Record
from phalanx.reproduce import FedDFRecipe, Scope, reproduce
from phalanx.reproduce.distilled_federations import dealt, unlabelled

SCOPE = Scope("quick")


def test_clients_validation_and_unlabelled_data_share_no_sample():
    found = dealt(Digits(), 600, 4, 1.0, 8, seed=0)
    held = torch.cat([one[:][0] for one in found.clients])
    parts = [held, found.validation.tensors[0], found.rest.tensors[0]]
    assert [len(one) for one in parts] == [600, 150, len(Digits().load().train) - 750]
    rows = torch.cat([one.flatten(1) for one in parts])
    twice = len(Digits().load().train[:][0].flatten(1).unique(dim=0))
    assert len(rows.unique(dim=0)) == twice


def test_generated_images_have_the_moments_of_the_validation_images():
    found = dealt(Digits(), 600, 4, 1.0, 8, seed=0)
    seen = found.validation.tensors[0].flatten(1)
    drawn = unlabelled("generated", found, None, 8, 0).tensors[0]
    assert drawn.shape == found.rest.tensors[0].shape
    error = (drawn.flatten(1).T.cov(correction=0) - seen.T.cov(correction=0)).norm()
    assert error < 0.5 * seen.T.cov(correction=0).norm()
    noise = unlabelled("noise", found, None, 8, 0).tensors[0]
    assert noise.mean().abs() < 0.05
    assert (noise.var() - 1).abs() < 0.05


def records(recipe, lift, sooner, guarded=True):
    """Records in which distillation lifts prototypes by points, and FedDF is as soon as told."""
    found = []
    for cell in recipe.cells(SCOPE):
        told = dict(cell.labels)
        if told["part"] == "prototypes":
            points = lift if told["unlabelled"] != "noise" else 1.0
            means = [0.30, 0.40, 0.50]
            values = {
                "mean_accuracies": [means],
                "test_accuracies": [[one + points / 100 for one in means]],
                "ensemble_accuracy": [0.55],
            }
        else:
            ours = told["method"] == "FedDF"
            curve = [0.6] * recipe.rounds if ours and sooner else [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
            values = {"test_accuracy": curve, "mean_accuracy": [0.5] * 6}
            values["distilled_accuracy"] = [0.5 if guarded else 0.4] * 6
        found.append(Record(cell.labels, values=values))
    return Records(found)


def test_claims_follow_from_records(subtests):
    recipe = FedDFRecipe(rounds=6).at("quick")
    for lift, sooner, guarded, expected in (
        (10.0, True, True, ["yes", "yes", "yes", "no", "yes", "yes", "yes"]),
        (8.9, True, True, ["partly", "yes", "yes", "no", "yes", "yes", "yes"]),
        (30.0, False, False, ["yes", "no", "no", "yes", "yes", "yes", "no"]),
    ):
        with subtests.test(lift=lift, sooner=sooner):
            found = recipe.findings(records(recipe, lift, sooner, guarded), SCOPE)
            told = [one.same for one in found.claims]
            told[3] = "yes" if all(found.claims[3].holds) else "no"
            assert told == expected
            short = found.answer.startswith("FedDF fell short")
            assert short == (expected[:2] != ["yes", "yes"])


@pytest.mark.slow
def test_the_recipe_runs_whole(tmp_path):
    tiny = FedDFRecipe(
        samples=(120, 0), num_clients=3, per_prototype=1, rounds=2, epochs=1, steps=5, seeds=1
    )
    found = reproduce(tiny, tmp_path, size="quick", jobs=1).findings
    assert [row[0] for row in found.tables[0].rows] == ["in domain", "generated", "noise"]
    assert len(found.claims) == 7
