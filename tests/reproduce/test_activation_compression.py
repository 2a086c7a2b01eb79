"""The recipe on narrow networks and few epochs."""

import gzip
import itertools
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from phalanx.compression import SampleQuantization, Uncompressed
from phalanx.data import DataSource, Digits, Splits
from phalanx.experiments import load, measure
from phalanx.losses import cross_entropy
from phalanx.pipeline import ActivationDifference, SimulatedPipeline
from phalanx.reproduce import ActivationCompression, reproduce
from phalanx.reproduce.base import Scope
from phalanx.reproduce.compression_theory import fewest_bits, rate_record, relative_error_bound
from phalanx.reproduce.fine_tuning import pretrained
from phalanx.reproduce.pipeline_links import link_record
from phalanx.reproduce.staged_training import chain, descend
from phalanx.reproduce.text_findings import _bounded, text_findings


def test_the_recipe_measures_what_it_says(tmp_path):
    tiny = ActivationCompression(stages=(2,), width=16, epochs=2, seeds=1, batch_size=256)
    done = reproduce(tiny, tmp_path, size="quick", jobs=1)
    assert "texts" in done.findings.notes[-1]
    assert "is left out at this size" in done.findings.notes[-1]
    assert "In 2 stages" in done.findings.answer
    by_claim = {one.text.split(" ")[0]: one for one in done.findings.claims}
    assert by_claim["Both"].same == by_claim["Every"].same == "yes"
    assert by_claim["Every"].ours == "in 6 of 6 runs"
    for shown in done.findings.tables:
        assert shown.rows[0][0] == "2"
        assert all(0 <= one <= 100 for one in shown.rows[0][1:])
    assert (done.folder / "findings.html").exists()


def test_stages_have_a_hidden_layer_each(subtests):
    for number, linear in [(2, 3), (3, 3), (4, 4)]:
        with subtests.test(number=number):
            stages = chain((1, 8, 8), 10, number, 8)
            assert len(stages) == number
            assert stages(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
            layers = [layer for stage in stages for layer in stage]
            assert sum(isinstance(layer, nn.Linear) for layer in layers) == linear


@pytest.mark.slow
def test_the_part_on_texts_measures_what_it_says(tmp_path):
    text = "to be, or not to be: " * 60
    (tmp_path / "tinyshakespeare.txt.gz").write_bytes(gzip.compress(text.encode()))
    stories = "train,1,x,who was,it\ntrain,2,y,a,b\ntest,2,y,a,b\n" * 40
    news = f"split,label,class,title,description\n{stories}"
    (tmp_path / "ag_news_7600.csv.gz").write_bytes(gzip.compress(news.encode()))
    rows = "train,0,who was it\ntrain,1,where was it\ntest,1,where is it\n" * 8
    (tmp_path / "trec.csv.gz").write_bytes(gzip.compress(f"split,label,text\n{rows}".encode()))
    small = {"text_epochs": (2, 2), "text_width": 4, "text_seeds": 2, "learnt_steps": 3}
    tiny = ActivationCompression(texts=(16, 16), **small).at("default")
    cells = [one for one in tiny.cells(Scope("default", tmp_path)) if "task" in one.labels]
    assert len(cells) == 32
    found = measure(cells, jobs=1)
    assert [one.status for one in found] == ["finished"] * 32, found[0]
    tasks = ["next characters of Shakespeare", "types of questions"]
    assert found.labels("task") == tasks
    for task in tasks:
        dense, *coarse, whole = found.where(task=task, seed=0)
        values = dense["boundary_bytes"] / (4 * 2 * 2 * 3)  # bytes, ways, epochs, boundaries
        data = next(cell.arguments["data"] for cell in cells if cell.labels["task"] == task)
        assert values == 16 * load(data).input_shape[0] * 4
        dense_bytes = dense["boundary_bytes"]
        assert all(
            dense_bytes / 2 < one["boundary_bytes"] < 0.7 * dense_bytes for one in (*coarse, whole)
        )
        assert dense["error"] == 0
        assert whole["boundary_bytes"] == coarse[-1]["boundary_bytes"]
        assert whole["gradient_bytes"] > 0
    shown = text_findings(tiny.told, found)
    assert [len(table.rows) for table in shown.tables] == [8, 8]
    assert [one.ours.count("; without") for one in shown.claims] == [2, 2, 2]
    with pytest.raises(ValueError, match="ag_news"):
        tiny.cells(Scope("default", tmp_path / "elsewhere"))


def test_fine_tuning_starts_from_what_was_learnt_with_a_new_head():
    model = partial(MLPOfLayers, width=8)
    torch.manual_seed(3)
    before = model((64,), 10)
    torch.manual_seed(3)
    after = pretrained((64,), 4, model, "digits", FlatDigits(), steps=5)
    moved = [
        not torch.equal(one, other)
        for one, other in zip(before.parameters(), after.parameters(), strict=True)
        if one.shape == other.shape
    ]
    assert all(moved)
    assert len(moved) == 6
    torch.manual_seed(3)
    again = pretrained((64,), 4, model, "digits", FlatDigits(), steps=5)
    assert torch.equal(next(again.parameters()), next(after.parameters()))


class MLPOfLayers(nn.Module):
    def __init__(self, input_shape, num_classes, width):
        super().__init__()
        sizes = [input_shape[0], width, width, width]
        hidden = [
            nn.Sequential(nn.Linear(one, other), nn.Tanh())
            for one, other in itertools.pairwise(sizes)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, num_classes))

    def forward(self, inputs):
        return self.layers(inputs)


@dataclass(frozen=True)
class FlatDigits(DataSource):
    def load(self):
        whole = Digits().load()
        train = TensorDataset(whole.train[:][0].flatten(1), whole.train[:][1])
        return Splits(train, train, (64,), 10)


def test_the_bound_of_stochastic_rounding_is_one():
    """And is that of the theorem from 6 bits on, with 512 numbers."""
    assert fewest_bits(512) == 6
    for bits in (2, 3, 4, 6):
        x = torch.zeros(2000, 64)
        x[:, 0] = 1.0  # the largest, exact
        x[:, 1:] = 1e-9  # between the levels next to zero: the worst that can be
        quantizer = SampleQuantization(bits, "stochastic")
        draws = torch.Generator().manual_seed(0)
        off = quantizer.decode(quantizer.encode(x, draws)) - x
        error = (off.norm(dim=1) / x.norm(dim=1)).mean().item()
        assert error <= relative_error_bound(64, bits) * 1.001
        assert error >= relative_error_bound(64, bits) * 0.99


def test_gradients_of_a_run_are_measured_and_none_stands_for_one_that_diverged():
    found = rate_record(40, "differences", 4, 8, 0)
    assert 0 < found["squared gradient"] < 100
    record = {"rate": [10.0, 5.0, 7.0], "grows": [10.0, 5.0, 11.0], "diverged": [1.0, None]}
    assert [_bounded(one) for one in record.values()] == [True, False, False]


@pytest.mark.slow
def test_steps_on_slow_links_are_timed_or_computed():
    dense = link_record(32, 32, "20mbit", 2)
    coarse = link_record(4, 8, "20mbit", 2)
    assert dense["bytes"] == 2 * 8 * 64 * 128 * 4
    assert dense["seconds"] > 8 * dense["bytes"] / 2 / 2e7  # both ways at once, at best
    assert coarse["bytes"] < dense["bytes"] / 5


def test_replicas_with_exact_gradients_train_as_one_pipeline():
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, 0] > 0).long()
    found = []
    for replicas, gradients in ((1, None), (2, Uncompressed())):
        torch.manual_seed(0)
        stages = [nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 2)]
        pipelines = [
            SimulatedPipeline(
                stages,
                inputs[:1],
                cross_entropy,
                num_samples=16,
                forward=ActivationDifference(32),
                backward=SampleQuantization(32),
            )
            for _ in range(replicas)
        ]
        optimizer = torch.optim.SGD(nn.ModuleList(stages).parameters(), lr=0.1)
        steps = []
        optimizer.register_step_post_hook(lambda *_, steps=steps: steps.append(1))
        run = descend(pipelines, optimizer, inputs, targets, 3, 16, 0, gradients)  # all in a step
        assert list(run) == [0.0, 0.0, 0.0]
        assert len(steps) == 3
        found.append(nn.utils.parameters_to_vector(nn.ModuleList(stages).parameters()))
    torch.testing.assert_close(*found)
