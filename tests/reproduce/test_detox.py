"""The recipe of DETOX, with few workers and rounds."""

import pytest

from phalanx.reproduce import Detox, reproduce

TINY = Detox(num_workers=21, few=2, many=4, steps=2, samples_per_worker=2)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1).findings


def table(found, title):
    (one,) = [one for one in found.tables if one.title == title]
    return [dict(zip(one.headers, row, strict=True)) for row in one.rows]


def claim(found, start):
    (one,) = [one for one in found.claims if one.text.startswith(start)]
    return one


def test_lies_that_win_no_group_change_no_bit(found):
    one = claim(found, "As long as the honest are a majority")
    assert (one.ours, one.same) == ("with one Byzantine worker, bit for bit the run without", "yes")


def test_rules_stand_with_votes_and_alone_beside_the_published_figures(found):
    one = claim(found, "Rules keep a higher test accuracy")
    assert one.paper.startswith("Multi-Krum 80.3 / 45.2, Bulyan 76.8 / 42.6, median 86.2 / 43.7")
    rows = {(row["Byzantine"], row["rule"]): row for row in table(found, "Test accuracy")}
    for rule in ("Multi-Krum", "Bulyan", "median", "mean"):
        assert f"{rows[2, rule]['DETOX']:.1f} / {rows[2, rule]['alone']:.1f}" in one.ours
    assert rows[4, "median"]["alone"] is None  # not run
    assert rows[0, "mean"]["alone"] > 0


def test_groups_won_by_byzantine_workers_are_counted_and_calculated(found):
    for row in table(found, "Groups won by Byzantine workers"):
        assert row["counted"] == pytest.approx(row["expected"], abs=0.1)
        assert row["at most"] == row["Byzantine"] // 2


def test_a_round_is_redundant_computation_and_decoding(found):
    rows = table(found, "Seconds per round")
    assert len(rows) == 7
    for row in rows:
        assert row["gradients per worker"] == (3 if row["decoder"].startswith("DETOX") else 1)
        computed = row["gradients per worker"] * row["seconds per gradient"]
        assert row["total (s)"] == pytest.approx(computed + row["decode (s)"])
