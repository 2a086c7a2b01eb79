"""The recipe on few nodes, small matrices and a handful of steps."""

import math
from dataclasses import replace

import pytest

from phalanx.data import Digits, IidPartitioner
from phalanx.experiments import measure
from phalanx.gossip import DPSGD
from phalanx.reproduce import PowerGossipRecipe, reproduce
from phalanx.reproduce.base import Scope
from phalanx.reproduce.power_gossip import _best_rate, ring_run

pytestmark = pytest.mark.slow
TINY = PowerGossipRecipe(
    num_nodes=4, size=12, rounds=60, hidden=(24,), samples=4, steps=5, learning_rates=(0.05,)
)


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PHALANX_DATA", raising=False)
        return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1).findings


@pytest.fixture
def tables(findings):
    return {
        table.title: {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}
        for table in findings.tables
    }


def test_every_claim_has_a_verdict(findings):
    assert len(findings.claims) == 9
    assert {one.same for one in findings.claims} <= {"yes", "no", "partly", "—"}


def test_consensus_and_its_bytes_are_those_of_the_algorithms(tables):
    found = tables["Consensus of white noise"]
    assert found["D-PSGD"]["bytes a round"] == 2 * 4 * 12 * 12
    assert found["PowerGossip, rank 1"]["bytes a round"] == 2 * 4 * 12
    assert found["PowerGossip, rank 2"]["bytes a round"] == 2 * 4 * 24
    left = {name: float(row["60 rounds"]) for name, row in found.items()}
    assert left["D-PSGD"] < left["PowerGossip, rank 2"] < left["PowerGossip, rank 1"] < 0.5


def test_bytes_of_training(tables):
    """A ring of 4; 64 inputs, 24 hidden units, 10 classes."""
    found = tables["Training, data alike"]
    assert found["D-PSGD"]["bytes a step"] == 2 * 4 * (64 * 24 + 24 + 24 * 10 + 10)
    # Columns in steps 0, 2 and 4, rows in 1 and 3; biases in all.
    thin = (3 * (64 + 24) + 2 * (24 + 10)) / 5 + 24 + 10
    assert found["PowerGossip, rank 1"]["bytes a step"] == round(2 * 4 * thin)
    assert found["all-reduce"]["bytes a step"] == 6 * (64 * 24 + 24 + 24 * 10 + 10)


def test_every_rate_is_tried_on_both_kinds_of_data_and_runs_of_four_lengths(findings):
    rows = {table.title: table.rows for table in findings.tables}
    assert len(rows["Consensus rates that were tried"]) == 2 * (3 + 3 + 2)
    lengths = rows["Shorter and longer runs, data different"]
    assert len(lengths) == 8
    assert {row[:2] for row in lengths} == {
        (steps, name)
        for name in ("D-PSGD", "PowerGossip, rank 1, optimal diffusion")
        for steps in (1, 2, 5, 10)
    }


def test_every_graph_converges(tables):
    found = tables["PowerGossip without tuning"]
    assert list(found) == ["ring", "torus", "star", "complete"]
    assert all(float(row["relative squared distance"]) < 0.5 for row in found.values())


def test_a_run_that_diverges_guesses_and_has_sent_its_bytes():
    options = {"data": Digits(), "partitioner": IidPartitioner(), "num_nodes": 4, "hidden": (24,)}
    found = ring_run(algorithm=DPSGD(), samples=4, steps=40, rate=1e12, seed=0, **options)
    assert (found["test_accuracy"], found["train_loss"]) == (0.1, math.inf)
    assert found["message_bytes"] == 2 * 4 * (64 * 24 + 24 + 24 * 10 + 10)
    assert "stopped" in found


def test_a_learning_rate_with_which_training_diverges_is_not_taken():
    wild = replace(TINY, steps=40, learning_rates=(1e12, 0.1), seeds=1)
    reduced = [cell for cell in wild.cells(Scope()) if "rate" in cell.labels]
    assert _best_rate(measure(reduced, jobs=1)) == 0.1
