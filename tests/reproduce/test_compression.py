"""The recipes of compression at tiny size; their byte tables are exact at any size."""

import pytest
import torch

from phalanx.compression import ErrorFeedback, TopK, Uncompressed
from phalanx.data import Digits
from phalanx.experiments import compressed_run
from phalanx.reproduce import AtomoRecipe, PowerSGDRecipe, RandomBlocks, reproduce

TINY = {"epochs": 1, "num_seeds": 1, "rates": (0.1,), "samples": 350}  # one step
ATOMO = {**TINY, "width": 2, "steps": (0,), "evaluate_every": 1}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    ours = [AtomoRecipe(**ATOMO), PowerSGDRecipe(**TINY), RandomBlocks(**TINY, timed_values=10**4)]
    found = [reproduce(one, out, size="quick", jobs=1) for one in ours]
    return {one.recipe.name: one.findings for one in found}


def table(findings, title):
    found = next(one for one in findings.tables if one.title == title)
    return {row[0]: dict(zip(found.headers, row, strict=True)) for row in found.rows}


@pytest.mark.slow
def test_published_bytes_come_out_exactly(done):
    for findings in done.values():
        bytes_ = [one for one in findings.claims if one.text.startswith("Megabytes")]
        assert bytes_
        assert all(one.same == "yes" for one in bytes_)


@pytest.mark.slow
def test_values_of_residual_networks(done):
    rows = table(done["powersgd"], "Traffic")
    values = [rows[f"ResNet-18, rank {rank}"]["values"] for rank in (1, 2, 4, 7)]
    assert values == [45_935, 82_260, 154_910, 263_885]
    assert [rows[f"ResNet-18, rank {rank}"]["fewer"] for rank in (1, 2, 4, 7)] == [
        243.3,
        135.8,
        72.1,
        42.3,
    ]
    rows = table(done["atomo"], "Traffic of ResNet-18")
    assert [rows[f"first axis, {number}"]["values"] for number in (1, 2, 3)] == [
        45_956,
        82_302,
        118_648,
    ]
    assert rows["as the authors reshape, 1"]["values"] == 617_521


@pytest.mark.slow
def test_every_method_is_trained(done):
    dense = [(128, 64), (128,), (128, 128), (128,), (10, 128), (10,)]
    filters = [(16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 64), (10,)]
    for name, findings in done.items():
        known = {"random-block": ("Training", filters), "atomo": ("Time to the accuracy", filters)}
        title, shapes = known.get(name, ("Training on digits", dense))
        rows = table(findings, title)
        assert rows["SGD"]["bytes"] == 4 * sum(torch.Size(shape).numel() for shape in shapes)
        assert all(
            row["bytes"] < rows["SGD"]["bytes"] for name, row in rows.items() if name != "SGD"
        )
        assert all(0 <= row.get("test accuracy", 0) <= 100 for row in rows.values())


@pytest.mark.slow
def test_atomo_has_the_bytes_of_its_rivals_and_the_least_variance(done):
    rows = table(done["atomo"], "Time to the accuracy")
    for rival in ("TernGrad", "QSGD, 4 bits"):
        ours = rows[f"ATOMO, singular vectors, bytes of {rival}"]["bytes"]
        assert ours == pytest.approx(rows[rival]["bytes"], rel=0.35)
    for row in table(done["atomo"], "Variance in as many bytes").values():
        assert row["auto"] <= min(row[name] for name in ("singular vectors", "entries", "waves"))


@pytest.mark.slow
def test_a_compressor_that_loses_nothing_trains_like_none():
    plain, whole = (
        compressed_run(data=Digits(), compressor=compressor, rate=0.1, epochs=1)
        for compressor in (Uncompressed(), ErrorFeedback(TopK(ratio=1.0)))
    )
    assert whole["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
    assert plain["test_accuracy"] > 0.5


def test_a_run_ends_where_the_target_is_reached():
    run = compressed_run(
        data=Digits(),
        compressor=Uncompressed(),
        rate=0.1,
        epochs=3,
        evaluate_every=4,
        target=0.6,
    )
    assert run["reached"] == run["evaluated"][-1]
    assert run["accuracies"][-1] >= 0.6 > max(run["accuracies"][:-1], default=0)
    assert run["evaluated"] == list(range(4, run["reached"] + 1, 4))
