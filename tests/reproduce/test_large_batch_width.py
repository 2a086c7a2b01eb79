"""The recipe on small networks: the whole of it, in seconds."""

import math
from dataclasses import replace
from statistics import mean

import pytest
import torch

from phalanx.reproduce import LargeBatchWidth, reproduce
from phalanx.reproduce.network_families import (
    Family,
    ResidualNetwork,
    fully_connected,
    linear_diversity,
)
from phalanx.reproduce.run import Reproduction

_DATA = ("mnist.npz", "MNIST")
FAMILIES = {
    "fully connected": Family(fully_connected, ((1, 24), (2, 16)), *_DATA, 400, 2.2, 0.6),
    "residual": Family(ResidualNetwork, ((1, 12), (4, 6)), *_DATA, 200, 3.0, 0.2),
}
TINY = LargeBatchWidth(
    linear_widths=(2, 8, 40),
    num_inputs=10,
    num_samples=40,
    draws=10,
    families=FAMILIES,
    batch_sizes=(32, 200),
    rates=(0.1, 0.5),
    most_epochs=4,
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
    found = linear_diversity(width=3, num_inputs=10, num_samples=40, draws=60)["diversity"]
    assert found == pytest.approx(mean(above) / mean(below), rel=0.3)


def test_networks_are_compared_at_equal_loss_and_all_batches_are_tried(done):
    names = [("fully connected", "1 x 24"), ("fully connected", "2 x 16")]
    names += [("residual", "1 x 12"), ("residual", "4 x 6")]
    found = rows(done, "Gradient diversity of networks that learn images")
    assert [(row["networks"], row["depth x width"]) for row in found] == names
    for row in found:
        assert row["at equal loss"] >= 1
        assert row["untrained"] >= 1
    found = rows(done, "Epochs to the training accuracy")
    assert [(row["networks"], row["depth x width"], row["batch"]) for row in found] == [
        (*name, batch) for name in names for batch in (32, 200)
    ]
    assert all((row["epochs"] is None) == (row["learning rates"] is None) for row in found)


def test_families_hold_networks_with_about_equally_many_weights():
    for family in LargeBatchWidth().families.values():
        shape = (1, 28, 28) if family.data == "MNIST" else (3, 32, 32)
        networks = [family.model(shape, 10, *one) for one in family.shapes]
        counts = [sum(value.numel() for value in one.parameters()) for one in networks]
        assert max(counts) / min(counts) < 1.06
        depths, widths = zip(*family.shapes, strict=True)
        assert sorted(depths) == list(depths)
        assert sorted(widths, reverse=True) == list(widths)


def test_every_claim_has_a_verdict_or_says_that_there_is_nothing_to_compare(done):
    verdicts = [one.same for one in done.findings.claims]
    assert "—" not in verdicts[:4]
    assert verdicts[4] == "—"
    wide = verdicts[1] == verdicts[2] == "yes"
    assert done.findings.answer.startswith("Of networks" if wide else "Width did not pay")
    assert (done.folder / "findings.html").read_text().count("<svg") == 2


def test_a_loss_that_is_not_reached_is_said_to_be_so(tmp_path):
    networks = Family(fully_connected, ((1, 8), (2, 6)), *_DATA, 300, 1e-9, 1.0)
    hopeless = replace(TINY, families={"fully connected": networks}, most_epochs=1, draws=1)
    found = reproduce(hopeless, tmp_path, size="quick", jobs=1).findings
    assert all(math.isnan(row[4]) for row in found.tables[1].rows)
    assert all(row[3] is None for row in found.tables[2].rows)
    assert [one.same for one in found.claims[1:4]] == ["no", "no", "no"]
