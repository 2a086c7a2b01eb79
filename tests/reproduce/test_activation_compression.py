"""The recipe on narrow networks and few epochs."""

import gzip

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from phalanx.compression import SampleQuantization, Uncompressed
from phalanx.pipeline import ActivationDifference, SimulatedPipeline
from phalanx.reproduce import ActivationCompression, reproduce
from phalanx.reproduce.activation_compression import chain
from phalanx.reproduce.activation_language import PLAY, QUESTIONS, Texts, findings, table
from phalanx.reproduce.staged_training import StagedTraining


def test_the_recipe_measures_what_it_says(tmp_path):
    tiny = ActivationCompression(stages=(2,), width=16, epochs=2, seeds=1, batch_size=256)
    (tmp_path / "empty").mkdir()
    done = reproduce(tiny, tmp_path, data=tmp_path / "empty")
    assert f"needs {PLAY} and {QUESTIONS}" in done.findings.notes[-1]
    assert "In 2 stages" in done.findings.answer
    by_claim = {one.claim.split(" ")[0]: one for one in done.findings.findings}
    assert by_claim["Both"].same == by_claim["Every"].same == "yes"
    assert by_claim["Every"].ours == "in 6 of 6 runs"
    for shown in done.findings.tables:
        assert shown.rows[0][0] == 2
        assert all(0 <= one <= 100 for one in shown.rows[0][1:])
    assert (done.folder / "findings.html").exists()


@pytest.mark.parametrize(("number", "linear"), [(2, 3), (3, 3), (4, 4)])
def test_stages_have_a_hidden_layer_each(number, linear):
    stages = chain(number, 8)
    assert len(stages) == number
    passed = torch.zeros(5, 1, 8, 8)
    for stage in stages:
        passed = stage(passed)
    assert passed.shape == (5, 10)
    layers = [layer for stage in stages for layer in stage]
    assert sum(isinstance(layer, torch.nn.Linear) for layer in layers) == linear


@pytest.mark.slow
def test_the_part_on_texts_measures_what_it_says(tmp_path):
    (tmp_path / PLAY).write_bytes(gzip.compress(b"to be, or not to be: " * 60))
    rows = "train,0,who was it\ntrain,1,where was it\ntest,1,where is it\n" * 8
    (tmp_path / QUESTIONS).write_bytes(gzip.compress(f"split,label,text\n{rows}".encode()))
    tasks = Texts(samples=16, epochs=2, width=4).tasks(tmp_path, full=False)
    assert [task.by_accuracy for task in tasks] == [False, True]
    said = []
    measured = [(task, task.measure(said.append)) for task in tasks]
    assert len(said) == 16
    for task, ended in measured:
        dense, *coarse, whole = ended.values()
        values = dense.boundaries / (4 * 2 * 2 * 3)  # bytes, ways, epochs, boundaries
        assert values == 16 * task.splits.input_shape[0] * 4
        first = dense.boundaries / 2
        assert all(first < one.boundaries < 0.7 * dense.boundaries for one in (*coarse, whole))
        assert dense.error == 0
        assert whole.boundaries == coarse[-1].boundaries
        assert whole.gradients > 0
        assert len(table(task, ended).rows) == 8
    assert [one.ours.count("; without") for one in findings(measured)] == [2, 2, 2]
    assert Texts().tasks(tmp_path / "elsewhere", full=False) == []


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
        training = StagedTraining(inputs, targets, 3, 16, 0, gradients)  # all samples a step
        assert list(training.run(pipelines, optimizer)) == [0.0, 0.0, 0.0]
        assert training.num_steps(replicas) == 3
        found.append(nn.utils.parameters_to_vector(nn.ModuleList(stages).parameters()))
    torch.testing.assert_close(*found)
