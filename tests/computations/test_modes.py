"""Every layer stays in the mode, and with the statistics, that the user gave it."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import phalanx
from phalanx.aggregation import Mean
from phalanx.computations import Objective
from phalanx.evaluation import evaluate
from phalanx.gossip import Replicas
from phalanx.losses import cross_entropy
from phalanx.pipeline.splitting import noise_upstream


class Normed(nn.Module):
    """A frozen batch norm of old statistics, a trained one, and dropout that is switched off."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.frozen, self.trained, self.dropout = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Dropout()
        self.frozen.running_mean.fill_(7.0)
        self.frozen.running_var.fill_(9.0)
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)
        self.train()

    def train(self, mode=True):
        """As users freeze layers: whatever is asked for, these stay."""
        super().train(mode)
        self.frozen.eval()
        self.dropout.eval()
        return self

    def forward(self, x):
        return self.last(self.dropout(self.trained(self.frozen(self.first(x)))))


def data(size=96):
    torch.manual_seed(1)
    return TensorDataset(3 * torch.randn(size, 4) + 1, torch.randint(3, (size,)))


def by_torch(model, inputs, targets):
    model = copy.deepcopy(model)
    loss = cross_entropy(model(inputs), targets)
    parameters = [one for one in model.parameters() if one.requires_grad]
    found = torch.autograd.grad(loss, parameters)
    return torch.cat([one.flatten() for one in found]), loss.detach()


def forgetful(model):
    """The same modes, without the method that keeps them."""
    plain = nn.Sequential(model.first, model.frozen, model.trained, model.dropout, model.last)
    plain[1].eval()
    plain[3].eval()
    return plain


@pytest.mark.parametrize("make", [Normed, lambda: forgetful(Normed())], ids=["kept", "plain"])
def test_a_gradient_is_that_of_torch_with_layers_as_they_are(make):
    model, (inputs, targets) = make(), data()[:8]
    objective = Objective(model, cross_entropy)
    assert not objective.is_random
    wanted, loss = by_torch(model, inputs, targets)
    parameters = objective.layout.read(model)
    for gradient, value in (
        objective.gradient(parameters, inputs, targets),
        [one[0] for one in objective.gradients(parameters, inputs[None], targets[None])],
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(value, loss)


@pytest.mark.parametrize("make", [Normed, lambda: forgetful(Normed())], ids=["kept", "plain"])
def test_training_leaves_frozen_statistics_and_modes_alone(make):
    model = make()
    modes = {name: one.training for name, one in model.named_modules()}
    phalanx.train(model, data(), rule=Mean(), num_workers=3, steps=2, test=data(20))
    frozen, trained = (one for one in model.modules() if isinstance(one, nn.BatchNorm1d))
    assert frozen.running_mean.unique().tolist() == [7.0]
    assert frozen.running_var.unique().tolist() == [9.0]
    assert trained.running_mean.abs().min() > 0
    assert {name: one.training for name, one in model.named_modules()} == modes


def test_an_evaluation_asks_frozen_layers_for_what_they_know():
    model, test = Normed(), data(20)
    model.trained.eval()
    inputs, targets = test.tensors
    with torch.no_grad():
        wanted = cross_entropy(model(inputs), targets).item()
    assert evaluate(model, cross_entropy, test, data()).loss == pytest.approx(wanted)


def test_a_model_that_is_all_in_evaluation_mode_is_trained_so_with_a_warning():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)).eval()
    with pytest.warns(UserWarning, match="model is in evaluation mode, and is trained so"):
        phalanx.train(model, data(), rule=Mean(), num_workers=3, steps=1)
    assert model[1].running_mean.tolist() == [0.0] * 6


def test_replicas_do_not_wake_what_was_put_to_sleep():
    model = Normed()
    model.trained.eval()
    replicas, inputs = Replicas(model, 3), torch.randn(3, 5, 4)
    for training in (True, False):
        replicas.train(training)
        wanted = torch.stack([model(one) for one in inputs])
        torch.testing.assert_close(replicas(inputs), wanted)


def test_dropout_that_is_switched_off_is_no_noise_before_a_boundary():
    stages = [nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2)]
    assert noise_upstream(stages) == ["stage 0: 1"]
    stages[0][1].eval()
    assert noise_upstream(stages) == []
