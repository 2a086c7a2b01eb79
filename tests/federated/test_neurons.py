"""Neurons found by tracing: permuted, padded, cut and rebuilt networks compute the same."""

import pytest
import torch
from torch import nn

from federated_networks import networks, orders
from phalanx.federated import neuron_layout
from phalanx.federated.neurons import resized, state_of
from phalanx.models import GPT, ResNet18


@torch.no_grad()
def test_permuted_padded_and_cut_networks_compute_the_same(subtests):
    for model, inputs in networks():
        with subtests.test(type(model).__name__):
            layout, state, outputs = neuron_layout(model), state_of(model), model(inputs)
            turned = layout.gather(state, orders(layout, state))
            torch.testing.assert_close(resized(model, turned)(inputs), outputs)
            if layout.layers:
                assert any(not torch.equal(turned[name], state[name]) for name in state)
            rigid = layout.rigid
            widths = layout.widths(state).items()
            wide = {layer: width + 3 * (layer not in rigid) for layer, width in widths}
            moved = orders(layout, state).items()
            places = {n: p if n in rigid else p + 3 * (p > 1) for n, p in moved}
            padded = layout.scatter(state, places, wide)
            assert layout.widths(padded) == wide
            torch.testing.assert_close(resized(model, padded)(inputs), outputs)
            back = layout.gather(padded, places)
            assert all(torch.equal(back[name], state[name]) for name in state)


def test_rows_hold_all_that_is_comparable_and_come_back():
    for model, _ in networks():
        layout, state, matched = neuron_layout(model), state_of(model), []
        for layer in layout.layers:
            names = layout.rows_of(layer, matched)
            atoms = layout.atoms(state, layer, names)
            assert len(atoms) == layout.widths(state)[layer]
            back = layout.split_atoms(atoms, layer, {name: state[name] for name in names})
            assert all(torch.equal(back[name], state[name]) for name in names)
            order = torch.randperm(len(atoms))
            turned = layout.gather(state, {layer: order})
            assert torch.equal(layout.atoms(turned, layer, names), atoms[order])
            matched.append(layer)
        lstm = layout.tensors.get("lstm.weight_hh_l0")
        assert lstm is None or "lstm.weight_hh_l0" not in layout.rows_of("lstm", matched)


def test_layers_that_a_normalisation_goes_over_are_rigid():
    names = ("0", "4", "8", "13")
    layout = next(neuron_layout(one) for one, _ in networks() if type(one).__name__ == "Normalised")
    assert layout.layers == names
    assert layout.rigid == set(names[1:])  # the first is normalised channel by channel


def test_a_residual_stream_is_one_layer():
    layout = neuron_layout(ResNet18((3, 32, 32), 10, norm="batch", width=4))
    assert layout.layers[:3] == ("stem.0", "blocks.0.residual.0", "blocks.1.residual.0")
    assert layout.tensors["blocks.1.residual.3.weight"].layer == "stem.0"


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.inner(self.inner(x)) * self.scale


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(self.embedding(x).mean(1))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_is_not_understood_is_named():
    refused = {
        r"1 \(LayerNorm\) of \[3\] after channels; 3 \(Conv1d\)": nn.Sequential(
            nn.Conv2d(3, 3, 1), nn.LayerNorm(3), nn.ReLU(), nn.Conv1d(3, 3, 1)
        ),
        r"1 \(GroupNorm\) of 2 groups of 4 channels": nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)
        ),
        r"1 \(Conv2d\) 4 groups": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=4)),
        r"inner \(Linear\) called twice; parameter .*scale": Twice(),
        r"shared parameters \['embedding.weight', 'decoder.weight'\]": Tied(),
        r"can trace, got Branching": Branching(),
        r"more than one layer": nn.LSTM(3, 4, num_layers=2),
        r"1 \(Linear\) after channels": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(8, 4)),
        r"softmax before the last layer|1 \(Softmax\)": nn.Sequential(
            nn.Linear(3, 3), nn.Softmax(1), nn.Linear(3, 2)
        ),
        r"can trace, got GPT": GPT((16,), 20),
    }
    for words, model in refused.items():
        with pytest.raises(ValueError, match=words):
            neuron_layout(model)
