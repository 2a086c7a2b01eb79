"""The recipes of coded computation and coded shuffling, at their smallest."""

import re

import pytest

from phalanx.reproduce import CodedComputation, CodedShuffling, reproduce
from phalanx.reproduce.multicast import multicast_ratio


def rows_of(done, title):
    table = next(one for one in done.findings.tables if one.title == title)
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def test_the_laws_of_coded_computation_hold_on_the_clock(tmp_path):
    recipe = CodedComputation(clocked_workers=(10, 100), rounds=2000, products=0, steps=20)
    done = reproduce(recipe, tmp_path, size="quick", jobs=1)
    assert [one.same for one in done.findings.claims] == ["yes", "yes", "yes", "—", "yes"]
    for row in rows_of(done, "Mean time of a product"):
        for kind in ("uncoded", "repeated twice", "coded"):
            assert row[f"{kind}, clock"] == pytest.approx(row[kind], rel=0.02)
    assert "not measured" in done.findings.claims[3].ours
    assert len(done.findings.plots) == 1


def test_coded_shuffling_counts_what_it_decoded(tmp_path):
    recipe = CodedShuffling(num_rows=3000, workers=(2, 5, 12), excess=(0.0, 0.3), real_workers=0)
    done = reproduce(recipe, tmp_path, size="quick", jobs=1)
    exact, gain, cost, law, real = done.findings.claims
    assert (exact.same, law.same, real.same) == ("yes", "yes", "\u2014")
    assert gain.same == "partly"  # 12 workers want more rows
    assert cost.same in {"partly", "\u2014"}
    found = rows_of(done, "Packets by workers and cache")
    assert len(found) == 2 + 2 + 4
    for row in found:
        assert row["packets"] <= row["needed"]
        assert row["gain"] == row["needed"] / row["packets"]
        if row["workers"] < 12:
            assert row["packets"] == pytest.approx(row["law"], rel=0.1)
        assert row["1 + n alpha"] == pytest.approx(1 + row["workers"] * row["alpha"], abs=0.01)


def test_a_multicast_is_cheaper_than_a_message_to_each():
    ratio = multicast_ratio(10)
    if ratio is None:
        pytest.skip("no multicast over loopback")
    assert 1 < ratio < 30


@pytest.mark.slow
def test_real_workers_decode_the_digits(tmp_path):
    pytest.importorskip("ray")
    sizes = {"num_rows": 3000, "workers": (5,), "excess": (0.3,)}
    recipe = CodedShuffling(**sizes, epochs=1, real_workers=2)
    assert reproduce(recipe, tmp_path, size="quick", jobs=1).findings.claims[-1].same == "yes"


@pytest.mark.slow
def test_real_workers_that_sleep_are_timed_beside_what_the_clock_expects(tmp_path):
    """So few products prove no gain; that nobody who sleeps is waited for, others test."""
    pytest.importorskip("ray")
    recipe = CodedComputation((10,), rounds=100, num_workers=4, unit_s=1.0, products=2, steps=1)
    real = reproduce(recipe, tmp_path, size="quick", jobs=1).findings.claims[3]
    assert re.match(r"4 workers on Ray: [\d.]+ s uncoded, [\d.]+ s from the first 3", real.ours)
    assert real.same in {"yes", "no"}
