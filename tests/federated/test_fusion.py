"""Fusion of networks: what matched averaging has to give back, and what it has to refuse."""

import pytest
import torch
from torch import nn

from federated_networks import networks, orders
from phalanx.aggregation import CoordinateMedian, TrimmedMean
from phalanx.federated import Matching, fuse, neuron_layout
from phalanx.federated.neurons import resized, state_of
from phalanx.models import MLP
from phalanx.randomness import generator, seeded

CLOSE = Matching(variance=0.01, mass=0.1)


def permuted(model, *names, noise=0.0):
    layout, state = neuron_layout(model), state_of(model)
    turned = layout.gather(state, orders(layout, state, *names))
    source = generator("noise", *names)
    for name, told in layout.tensors.items():
        if told.trained and noise:
            turned[name] += noise * torch.randn(turned[name].shape, generator=source)
    return resized(model, turned)


def mlp(seed, *hidden):
    with seeded(seed, "weights"):
        return MLP((20,), 3, hidden=hidden)


@torch.no_grad()
def test_permuted_copies_give_the_network_back(subtests):
    for model, inputs in networks():
        for number in (1, 3):
            with subtests.test(type(model).__name__, number=number):
                copies = [permuted(model, one) if number > 1 else model for one in range(number)]
                found = fuse(copies, matching=CLOSE)
                layout = neuron_layout(model)
                assert layout.widths(state_of(found.model)) == layout.widths(state_of(model))
                torch.testing.assert_close(found.model(inputs), model(inputs), atol=1e-4, rtol=1e-4)
                if number == 1:
                    state = state_of(found.model)
                    assert all(torch.equal(state[n], one) for n, one in state_of(model).items())


@torch.no_grad()
def test_a_robust_rule_bears_a_network_of_lies(subtests):
    """Its neurons match nobody's, so that they are its own, and zero."""
    for model, inputs in networks():
        if type(model).__name__ not in ("Characters", "Functional", "ResNet18"):
            continue
        with subtests.test(type(model).__name__):
            liar = permuted(model, "liar", noise=30.0)
            told = [*(permuted(model, one) for one in range(3)), liar]
            outputs = model(inputs)
            for rule in (CoordinateMedian(1), TrimmedMean(1)):
                found = fuse(told, matching=CLOSE, rule=rule).model(inputs)
                torch.testing.assert_close(found, outputs, atol=1e-3, rtol=1e-3)
            plain = fuse(told, matching=CLOSE).model(inputs)
            assert not torch.allclose(plain, outputs, atol=1e-2)


def test_rules_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rule must work with 2 networks"):
        fuse([mlp(0, 4), mlp(1, 4)], rule=TrimmedMean(1))
    shrunk = Matching(estimator="map")
    with pytest.raises(ValueError, match="needs estimator='mean'"):
        fuse([mlp(one, 4) for one in range(3)], matching=shrunk, rule=CoordinateMedian(1))


def normalised(seed, width):
    with seeded(seed, "weights"):
        return nn.Sequential(
            nn.Linear(6, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 3)
        )


def test_a_layer_under_a_normalisation_of_all_neurons_never_grows():
    apart = Matching(variance=1e-6, mass=1e6)
    found = fuse([normalised(seed, 5) for seed in range(3)], matching=apart)
    assert [one["0"].sort().values.tolist() for one in found.assignments] == [list(range(5))] * 3
    assert found.model(torch.zeros(2, 6)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"layer 0 of one width, .* got widths \[4, 5\]"):
        fuse([normalised(0, 5), normalised(0, 4)])


@torch.no_grad()
def test_a_little_noise_is_averaged_and_the_posterior_mode_shrinks():
    model, inputs = mlp(0, 100, 100), torch.randn(8, 20, generator=generator("x"))
    copies = [permuted(model, one, noise=1e-3) for one in range(3)]
    found = fuse(copies, matching=CLOSE).model
    assert neuron_layout(found).widths(state_of(found)) == {"layers.1": 100, "layers.3": 100}
    torch.testing.assert_close(found(inputs), model(inputs), atol=0.01, rtol=0.01)
    mode = fuse(copies, matching=Matching(variance=0.01, mass=0.1, estimator="map")).model
    ratio = mode.layers[1].weight / found.layers[1].weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, 3 / 3.01), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_neurons_kept_apart_are_an_ensemble():
    """With one hidden layer and no match, the logits are the mean of the networks'."""
    models = [mlp(0, 30), mlp(1, 20)]
    found = fuse(models, matching=Matching(variance=1e-6))
    assert neuron_layout(found.model).widths(state_of(found.model)) == {"layers.1": 50}
    x = torch.randn(8, 20, generator=generator("x"))
    mean = (models[0](x) + models[1](x)) / 2
    torch.testing.assert_close(found.model(x), mean)
    merged = fuse(models, matching=Matching(max_width=1))
    assert neuron_layout(merged.model).widths(state_of(merged.model)) == {"layers.1": 30}


@torch.no_grad()
def test_own_networks_cut_from_the_fused_one_give_it_back():
    """A client's first work of a round, followed by no training, changes nothing."""
    models = [mlp(one, 12, 9) for one in range(3)]
    layout, matching = neuron_layout(models[0]), Matching(mass=1.0)
    first = fuse(models, matching=matching)
    state = state_of(first.model)
    cut = [resized(models[0], layout.gather(state, one)) for one in first.assignments]
    assert all(layout.widths(state_of(one)) == layout.widths(state_of(models[0])) for one in cut)
    again = fuse(cut, matching=matching)
    x = torch.randn(8, 20, generator=generator("x"))
    assert layout.widths(state_of(again.model)) == layout.widths(state)
    one = first.model.layers[1](x).sort(dim=1).values
    torch.testing.assert_close(again.model.layers[1](x).sort(dim=1).values, one)


@torch.no_grad()
def test_the_last_layer_is_averaged_by_classes():
    models = [mlp(0), mlp(1)]
    counts = torch.tensor([[8, 0, 0], [2, 4, 0]])
    last = fuse(models, counts).model.layers[1]
    for name in ("weight", "bias"):
        a, b = (getattr(model.layers[1], name) for model in models)
        expected = torch.stack([0.8 * a[0] + 0.2 * b[0], b[1], (8 * a[2] + 6 * b[2]) / 14])
        torch.testing.assert_close(getattr(last, name), expected)


@torch.no_grad()
def test_recurrent_weights_are_averaged_over_networks_that_hold_both_ends():
    one, two = (nn.Sequential(nn.LSTM(2, width)) for width in (2, 1))
    lstm = [model[0] for model in (one, two)]
    for value, layer in zip((1.0, 3.0), lstm, strict=True):
        for weight in layer.parameters():
            weight.fill_(value)

    class Net(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.lstm, self.last = layer, nn.Linear(layer.hidden_size, 1)

        def forward(self, x):
            return self.last(self.lstm(x)[0][:, -1])

    found = fuse([Net(layer) for layer in lstm], matching=Matching(mass=1e-6)).model
    (shared,) = (found.lstm.weight_ih_l0[:2] == 2).all(dim=1).nonzero().flatten().tolist()
    expected = torch.ones(2, 2)
    expected[shared, shared] = 2.0
    assert torch.equal(found.lstm.weight_hh_l0.view(4, 2, 2), expected.expand(4, 2, 2))


def test_retraining_holds_fixed_what_is_matched():
    models, seen = [mlp(0, 6, 5), mlp(1, 4, 5)], []

    def retrain(number, model):
        trained = [name for name, one in model.named_parameters() if one.requires_grad]
        seen.append((number, trained))
        for name, one in model.named_parameters():
            if name in trained:
                one.data.mul_(0.5)

    found = fuse(models, retrain=retrain)
    rest, last = ["layers.3.weight", "layers.3.bias"], ["layers.5.weight", "layers.5.bias"]
    assert seen == [(0, rest + last), (1, rest + last), (0, last), (1, last)]
    assert all(one.requires_grad for one in found.model.parameters())
    plain = fuse(models).model.layers[1].weight
    assert torch.equal(found.model.layers[1].weight, plain)
    mean = sum(model.layers[5].bias for model in models) / 2
    torch.testing.assert_close(found.model.layers[5].bias, mean / 4)


def test_refusals():
    with pytest.raises(ValueError, match="models must be at least 1"):
        fuse([])
    with pytest.raises(ValueError, match="model 1 differs from model 0"):
        fuse([mlp(0, 4), mlp(0, 4, 4)])
    with pytest.raises(ValueError, match=r"model 1 differs.*layers.1.weight"):
        fuse([mlp(0, 4), MLP((21,), 3, hidden=[4])])
    with pytest.raises(ValueError, match="class_counts must have 2 rows, got 1"):
        fuse([mlp(0, 4), mlp(1, 4)], torch.ones(1, 3))
    with pytest.raises(ValueError, match="class_counts must be finite"):
        fuse([mlp(0, 4)], torch.zeros(1, 3))
