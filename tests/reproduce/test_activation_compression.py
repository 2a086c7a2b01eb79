"""The recipe on narrow networks and few epochs."""

import gzip

import pytest
import torch
from torch import nn

from phalanx.compression import SampleQuantization, Uncompressed
from phalanx.experiments import load, measure
from phalanx.losses import cross_entropy
from phalanx.pipeline import ActivationDifference, SimulatedPipeline
from phalanx.reproduce import ActivationCompression, reproduce
from phalanx.reproduce.activation_compression import (
    _FILES,
    chain,
    descend,
    text_findings,
)
from phalanx.reproduce.base import Scope


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
    play, questions = _FILES.values()
    (tmp_path / play).write_bytes(gzip.compress(b"to be, or not to be: " * 60))
    rows = "train,0,who was it\ntrain,1,where was it\ntest,1,where is it\n" * 8
    (tmp_path / questions).write_bytes(gzip.compress(f"split,label,text\n{rows}".encode()))
    tiny = ActivationCompression(texts=(16, 16), text_epochs=(2, 2), text_width=4).at("default")
    cells = [one for one in tiny.cells(Scope("default", tmp_path)) if "task" in one.labels]
    assert len(cells) == 16
    found = measure(cells, jobs=1)
    tasks = ["next characters", "types of questions"]
    assert found.labels("task") == tasks
    for task in tasks:
        some = found.where(task=task)
        dense, *coarse, whole = some
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
    with pytest.raises(ValueError, match="tinyshakespeare"):
        tiny.cells(Scope("default", tmp_path / "elsewhere"))


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
