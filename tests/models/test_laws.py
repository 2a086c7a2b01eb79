"""Laws of all models: one case per model."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from phalanx import models
from phalanx.models import GPT, MLP, LeNet, ResNet18, Softmax, TextClassifier

ALL = [getattr(models, name) for name in models.__all__]
TEXT = [GPT, TextClassifier]  # tokens in: see test_text.py
KINDS = [kind for kind in ALL if kind not in TEXT]
IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 17)]

every_kind = pytest.mark.parametrize("kind", KINDS)


def small(kind, input_shape=(1, 8, 8), **options):
    torch.manual_seed(0)
    if kind is ResNet18:
        options.setdefault("width", 4)
    return kind(input_shape, 10, **options)


@pytest.mark.parametrize("kind", ALL)
def test_the_command_line_can_make_a_factory_of_it(kind):
    parameters = list(inspect.signature(kind).parameters.values())
    assert issubclass(kind, nn.Module)
    assert [each.name for each in parameters[:2]] == ["input_shape", "num_classes"]
    assert all(each.default is not inspect.Parameter.empty for each in parameters[2:])


@every_kind
def test_inputs_in_logits_out(kind, subtests):
    for input_shape in IMAGES:
        with subtests.test(input_shape=input_shape):
            logits = small(kind, input_shape)(torch.randn(3, *input_shape))
            assert logits.shape == (3, 10)
            assert logits.isfinite().all()
    if kind in (Softmax, MLP):
        with subtests.test("table rows"):
            assert kind((7,), 3)(torch.randn(5, 7)).shape == (5, 3)


@every_kind
def test_weights_come_from_the_global_generator(kind):
    one, other = small(kind).state_dict(), small(kind).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.manual_seed(1)
    third = kind((1, 8, 8), 10)
    assert any(
        not torch.equal(a, b) for a, b in zip(third.parameters(), one.values(), strict=False)
    )


@pytest.mark.parametrize(
    "model",
    [*(small(kind) for kind in KINDS), small(ResNet18, norm="batch")],
    ids=[*(kind.__name__ for kind in KINDS), "ResNet18-batch"],
)
def test_gradients_of_partitions_by_vmap_equal_those_one_by_one(model):
    model = copy.deepcopy(model).double()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 6, 1, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(10, (4, 6), generator=generator)

    def loss(weights, inputs, targets):
        return nn.functional.cross_entropy(functional_call(model, weights, (inputs,)), targets)

    together = vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, targets)
    for partition in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs[partition]), targets[partition]).backward()
        for name, weight in model.named_parameters():
            torch.testing.assert_close(
                together[name][partition], weight.grad, rtol=1e-9, atol=1e-10
            )


@every_kind
def test_sizes_are_checked(kind, subtests):
    bad = [
        ((0, 8, 8), 10, "input_shape"),
        ((1, 8, 8), 0, "num_classes must be at least 1, got 0"),
    ]
    if kind in (LeNet, ResNet18):
        images = r"input_shape must be \(channels, height, width\)"
        bad += [(input_shape, 10, images) for input_shape in ((64,), (1, 3, 3), (8, 8))]
    for input_shape, num_classes, message in bad:
        with (
            subtests.test(input_shape=input_shape, num_classes=num_classes),
            pytest.raises(ValueError, match=message),
        ):
            kind(input_shape, num_classes)
