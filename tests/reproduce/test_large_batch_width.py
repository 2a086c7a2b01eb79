"""The recipe on small networks: the whole of it, in seconds."""

import math
from dataclasses import replace
from statistics import mean

import pytest
import torch

from phalanx.reproduce import LargeBatchWidth, reproduce
from phalanx.reproduce.large_batch_width import linear_diversity
from phalanx.reproduce.run import Reproduction

TINY = LargeBatchWidth(
    linear_widths=(2, 8, 40),
    num_inputs=10,
    num_samples=40,
    draws=10,
    layers=((1, 24), (2, 16)),
    loss=1.0,
    batch_sizes=(32, 700),
    rates=(0.1, 0.5),
    accuracy=0.6,
    most_epochs=6,
    seeds=1,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Reproduction:
    return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1)


def rows(done, title):
    table = next(one for one in done.findings.tables if one.title == title)
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def test_linear_networks_grow_towards_their_limit(done):
    found = [row["diversity"] for row in rows(done, "Linear networks")]
    assert found == sorted(found)
    assert TINY.limit == 8.0
    assert done.findings.claims[0].same in ("yes", "partly")


def test_the_diversity_of_linear_networks_is_that_of_the_formula():
    """A sample's gradient is its residual times (second layer, hidden layer) times its input."""
    above, below = [], []
    for draw in range(60):
        source = torch.Generator().manual_seed(draw)
        first = torch.randn(3, 10, generator=source)
        second = torch.randn(3, generator=source)
        inputs = torch.randn(40, 10, generator=source)
        residual = inputs @ first.T @ second - torch.randn(40, generator=source)
        squares = second.square().sum() * inputs.square().sum(1) + (inputs @ first.T).square().sum(
            1
        )
        above.append((residual.square() * squares).mean().item())
        whole = residual @ inputs / 40
        below.append((second.square().sum() * whole.square().sum()).item())
        below[-1] += (first @ whole).square().sum().item()
    found = linear_diversity(replace(TINY, draws=60), 3)["diversity"]
    assert found == pytest.approx(mean(above) / mean(below), rel=0.3)


def test_networks_are_compared_at_equal_loss_and_all_batches_are_tried(done):
    for row in rows(done, "Gradient diversity on digits"):
        assert row["at equal loss"] >= 1
        assert row["untrained"] >= 1
    found = rows(done, "Epochs to the accuracy")
    assert [(row["depth x width"], row["batch"]) for row in found] == [
        ("1 x 24", 32),
        ("1 x 24", 700),
        ("2 x 16", 32),
        ("2 x 16", 700),
    ]
    assert all((row["epochs"] is None) == (row["learning rate"] is None) for row in found)


def test_every_claim_has_a_verdict_or_says_that_there_is_nothing_to_compare(done):
    assert [one.same for one in done.findings.claims[3:]] == ["—", "—"]
    assert "times the gradient diversity" in done.findings.answer
    assert (done.folder / "findings.html").read_text().count("<svg") == 2


def test_a_loss_that_is_not_reached_is_said_to_be_so(tmp_path):
    layers = ((1, 8), (2, 6))
    hopeless = replace(TINY, layers=layers, loss=1e-9, accuracy=1.0, most_epochs=1, draws=1)
    found = reproduce(hopeless, tmp_path, size="quick", jobs=1).findings
    assert all(math.isnan(row[3]) for row in found.tables[1].rows)
    assert all(row[2] is None for row in found.tables[2].rows)
    assert found.claims[1].same == "no"
    assert "not reached" in found.answer
