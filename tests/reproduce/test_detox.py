"""The recipe of DETOX, with few workers and rounds."""

from dataclasses import replace

import numpy as np
import pytest

from phalanx.reproduce import Detox, recipes, reproduce

TINY = Detox(
    num_workers=9,
    few_liars=1,
    many_liars=2,
    group_sizes=(3, 5),
    num_buckets=(3, 1),
    steps=2,
    samples_per_worker=2,
    image_steps=1,
    samples_per_image_worker=1,
    image_width=4,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return reproduce(TINY, tmp_path_factory.mktemp("out")).findings


def table(found, title):
    (one,) = [one for one in found.tables if one.title == title]
    return {row[0]: dict(zip(one.headers, row, strict=True)) for row in one.rows}


def test_it_is_found_by_its_name():
    assert recipes()["detox"] is Detox


def test_lies_that_win_no_group_change_no_bit(found):
    (one,) = [one for one in found.findings if "majority in every group" in one.claim]
    assert (one.ours, one.same) == ("with one liar, bit for bit the run without", "yes")


def test_the_published_figures_stand_beside_ours(found):
    first = found.findings[0]
    assert first.paper.startswith("Multi-Krum 80.3 % against 45.2 %; Bulyan 76.8 % against 42.6 %")
    assert first.ours.endswith("(digits, MLP)")
    rows = table(found, "Training")
    assert {"DETOX Bulyan", "Bulyan alone", "mean, constant", "DETOX, one liar"} <= set(rows)
    assert rows["DETOX, constant"]["named"] == rows["DETOX, constant"]["lies"] == 2


def test_groups_won_by_liars_are_counted_and_calculated(found):
    row = table(found, "Groups won by liars")["2 liars, groups of 3"]
    assert row["expected"] == pytest.approx(0.25)  # 9 pairs in one group of 36 pairs
    assert row["counted"] == pytest.approx(0.25, abs=0.05)
    assert row["at most"] == 1


def test_the_limit_is_shown(found):
    limit = found.findings[-1]
    assert limit.claim.startswith("What is not claimed")
    assert "DETOX of 3, 3 buckets" in limit.ours


@pytest.mark.slow
def test_images_are_for_full_runs(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=np.arange(40) % 10)
    done = reproduce(replace(TINY, steps=1), tmp_path / "out", full=True, data=tmp_path)
    assert "images, ResNet-18" in done.findings.answer
    assert len(table(done.findings, "Images")) == 7
