"""Multilayer perceptrons."""

import pytest
import torch

from phalanx.models import MLP, Softmax


def test_widths_of_the_hidden_layers():
    shapes = [tuple(weight.shape) for weight in MLP((1, 8, 8), 10, hidden=[32, 16]).parameters()]
    assert shapes == [(32, 64), (32,), (16, 32), (16,), (10, 16), (10,)]


def test_no_hidden_layer_is_softmax_regression():
    model, softmax = MLP((4,), 3, hidden=[]), Softmax((4,), 3)
    model.layers[1].load_state_dict(softmax.linear.state_dict())
    inputs = torch.randn(5, 4)
    assert torch.equal(model(inputs), softmax(inputs))


def test_widths_are_checked():
    with pytest.raises(ValueError, match=r"hidden must have widths of at least 1, got \[8, 0\]"):
        MLP((4,), 3, hidden=[8, 0])
