"""The recipe of DETOX, with few workers and rounds."""

from dataclasses import replace

import numpy as np
import pytest

from phalanx.reproduce import Detox, recipes, reproduce

TINY = Detox(
    num_workers=9,
    few_byzantine=1,
    many_byzantine=2,
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
    return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1).findings


def table(found, title):
    (one,) = [one for one in found.tables if one.title == title]
    return {row[0]: dict(zip(one.headers, row, strict=True)) for row in one.rows}


def test_it_is_found_by_its_name():
    assert recipes()["detox"] is Detox


def test_lies_that_win_no_group_change_no_bit(found):
    (one,) = [one for one in found.claims if "majority in every group" in one.text]
    assert (one.ours, one.same) == ("with one Byzantine worker, bit for bit the run without", "yes")


def test_the_published_figures_stand_beside_ours(found):
    first = found.claims[0]
    assert first.paper.startswith("Multi-Krum 80.3 % against 45.2 %; Bulyan 76.8 % against 42.6 %")
    assert first.ours.endswith("(digits, MLP)")
    rows = table(found, "Training")
    assert {"DETOX Bulyan", "Bulyan alone", "mean, constant", "DETOX, one Byzantine"} <= set(rows)
    assert rows["DETOX, constant"]["named"] == rows["DETOX, constant"]["lies"] == 2


def test_groups_won_by_byzantine_workers_are_counted_and_calculated(found):
    row = table(found, "Groups won by Byzantine workers")["2 Byzantine, groups of 3"]
    assert row["expected"] == pytest.approx(0.25)  # 9 pairs in one group of 36 pairs
    assert row["counted"] == pytest.approx(0.25, abs=0.05)
    assert row["at most"] == 1


def test_the_limit_is_shown(found):
    limit = found.claims[-1]
    assert limit.text.startswith("What is not claimed")
    assert "DETOX of 3, 3 buckets" in limit.ours


@pytest.mark.slow
def test_images_are_for_full_runs(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=np.arange(40) % 10)
    done = reproduce(replace(TINY, steps=1), tmp_path / "out", size="full", data=tmp_path, jobs=1)
    assert "images, ResNet-18" in done.findings.answer
    assert len(table(done.findings, "Images")) == 7
