"""How good the weights are, and batch statistics that nobody has to be trusted for."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset

from phalanx.evaluation import with_statistics
from phalanx.losses import cross_entropy
from phalanx.training import evaluate


def test_accuracy_and_loss_are_those_of_the_whole_set(make_model):
    inputs = torch.randn(2500, 6, generator=torch.Generator().manual_seed(1))  # three batches
    targets = inputs[:, :4].argmax(dim=1)
    model = make_model().eval()
    data = TensorDataset(inputs, targets)
    found = evaluate(model, cross_entropy, data, data)
    with torch.no_grad():
        outputs = model(inputs)
    assert found.accuracy == pytest.approx((outputs.argmax(1) == targets).double().mean().item())
    assert found.loss == pytest.approx(functional.cross_entropy(outputs, targets).item(), rel=1e-5)


def test_sequences_have_an_answer_at_every_place():
    scores = torch.randn(30, 7, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(4, (30, 7), generator=torch.Generator().manual_seed(2))
    data = TensorDataset(scores, targets)
    model = nn.Linear(4, 4)
    found = evaluate(model, cross_entropy, data, data)
    outputs = model(scores).reshape(210, 4)
    assert found.accuracy == (outputs.argmax(1) == targets.reshape(210)).double().mean().item()
    expected = functional.cross_entropy(outputs, targets.reshape(210)).item()
    assert found.loss == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_torch_s_wherever_torch_takes_it():
    images, maps = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    assert cross_entropy(images, maps).equal(functional.cross_entropy(images, maps))
    assert cross_entropy(images[0, :, 0].T, maps[0, 0]).equal(
        functional.cross_entropy(images[0, :, 0].T, maps[0, 0])
    )


def test_targets_that_are_no_classes_have_no_accuracy(make_model):
    inputs = torch.randn(50, 6)
    data = TensorDataset(inputs, inputs[:, :4])
    found = evaluate(make_model(), mse_loss, data, data)
    assert found.accuracy is None
    assert found.loss > 0


def test_outputs_may_be_no_tensor():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, inputs):
            return self.layer(inputs), inputs

    data = TensorDataset(torch.randn(9, 6), torch.zeros(9, dtype=torch.int64))
    found = evaluate(
        Pair(), lambda outputs, targets: cross_entropy(outputs[0], targets), data, data
    )
    assert found.accuracy is None


@pytest.mark.parametrize("size", [2, 500, 1025, 20_000])  # 1025: no batch of one is left over
def test_statistics_are_those_of_the_training_data_even_if_it_is_sorted(size):
    inputs = torch.linspace(-3, 5, size).unsqueeze(1)
    norm = nn.BatchNorm1d(1)
    ready = with_statistics(norm, TensorDataset(inputs, torch.zeros(size)))
    assert ready.running_mean.item() == pytest.approx(1.0, abs=0.1)
    assert ready.running_var.item() == pytest.approx(inputs.var().item(), rel=0.05)
    assert norm.running_mean.item() == 0  # the model that was given is left alone
    assert not ready.training


def test_dropout_is_off_in_evaluation(blobs, make_model):
    model = make_model(nn.Dropout(0.9))
    first, second = (evaluate(model, cross_entropy, blobs[1], blobs[0]) for _ in range(2))
    assert first == second
