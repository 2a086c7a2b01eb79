"""The recipe on a small network: the whole of it, in seconds; and what its runs count."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from phalanx.batch_size import AccordionBatch
from phalanx.compression import Accordion, TopK
from phalanx.data import Digits
from phalanx.experiments import compressed_run
from phalanx.models import MLP
from phalanx.reproduce import AccordionRecipe, reproduce
from phalanx.reproduce.accordion_runs import batch_run, level_run
from phalanx.reproduce.run import Reproduction

TINY = AccordionRecipe(epochs=3, interval=1, samples=170, seeds=1, batch_sizes=(180, 360))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Reproduction:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PHALANX_DATA", raising=False)
        return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1)


def rows(done, title):
    table = next(one for one in done.findings.tables if one.title == title)
    return {row[0]: dict(zip(table.headers[1:], row[1:], strict=True)) for row in table.rows}


@pytest.mark.slow
def test_accordion_lies_between_the_static_levels(done):
    for kind in ("top-k", "top-k, error feedback", "PowerSGD"):
        found = rows(done, f"Levels: {kind}")
        sent = [found[name]["MB"] for name in ("high compression", "Accordion", "low compression")]
        assert sent[0] < sent[1] <= sent[2]
        assert {row["updates"] for row in found.values()} == {3 * (1438 // 680)}
    found = rows(done, "Levels: batch size")
    updates = [found[name]["updates"] for name in ("high compression", "low compression")]
    assert updates == [3 * 4, 3 * 8]
    assert updates[0] < found["Accordion"]["updates"] <= updates[1]


@pytest.mark.slow
def test_every_claim_has_a_figure_and_a_verdict(done):
    assert len(done.findings.claims) == 3 * 4 + 2
    assert all(one.same in ("yes", "no", "partly") for one in done.findings.claims)
    assert any("5.45 times" in one.paper for one in done.findings.claims)
    for kind in ("top-k", "PowerSGD"):
        row = rows(done, f"Levels: {kind}")["Accordion"]
        assert row["s, 10 Mbit/s"] > row["s, 100 Mbit/s"] > row["s, 1 Gbit/s"] > 0
    assert "times fewer bytes" in done.findings.answer
    assert "scikit-learn's digits" in done.findings.notes[0]
    assert (done.folder / "findings.html").read_text().count("<svg") == 1


SMALL = {"data": Digits(), "model": partial(MLP, hidden=[16]), "epochs": 4}
STEPS = 1438 // 400  # rounds per epoch of four workers with 100 samples each


def test_bytes_are_counted_by_the_level_of_every_layer():
    """Weights 16 x 64 and 10 x 16, biases 16 and 10; low for two epochs of three steps."""
    low, high = TopK(0.5), TopK(0.1)
    compressor = Accordion(low, high, math.inf, STEPS, 1)
    run = level_run(**SMALL, compressor=compressor, samples=100, rate=0.1, seed=0)
    each = [
        4 * 26
        + sum(len(one.encode(torch.ones(shape)).to_bytes()) for shape in ((16, 64), (10, 16)))
        for one in (low, high)
    ]
    assert run["megabytes"] == pytest.approx(2 * 3 * sum(each) / 1e6)
    assert run["low_share"] == [1.0, 1.0, 0.0, 0.0]
    assert run["updates"] == 12


def test_no_compression_at_all_is_plain_descent():
    """All values of all workers: the run of one worker with the whole batch."""
    everything = Accordion(TopK(1.0), TopK(1.0), steps_per_epoch=STEPS)
    many, one = (
        compressed_run(
            **SMALL, compressor=everything, rate=0.1, seed=1, num_workers=n, samples=400 // n
        )
        for n in (4, 1)
    )
    assert many["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)


def test_batches_and_the_learning_rate_grow_together():
    fixed, grown = (
        batch_run(**SMALL, batch=batch, rate=0.1, seed=0)
        for batch in (
            AccordionBatch(100, 100, interval=1),
            AccordionBatch(100, 400, eta=math.inf, interval=1),
        )
    )
    assert fixed["updates"] == 4 * 15
    assert grown["updates"] == 2 * 15 + 2 * 4
    assert grown["low_share"] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.slow
def test_full_runs_train_on_images_where_they_are(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (450, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_12k.npz", x_train=pixels, y_train=np.arange(450) % 10)
    small = AccordionRecipe(epochs=2, interval=1, samples=90, seeds=1, batch_sizes=(180, 360))
    found = reproduce(small, tmp_path / "out", data=tmp_path, size="full", jobs=1).findings
    assert "cifar10_12k.npz, 360 training images" in found.notes[0]
