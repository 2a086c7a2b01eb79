"""ResNet-18: its size, and its norms."""

import pytest
import torch
from torch import nn

from phalanx.models import ResNet18


def test_number_of_weights_and_of_layers(subtests):
    for norm in ("group", "batch"):
        with subtests.test(norm=norm), torch.device("meta"):
            model = ResNet18((3, 32, 32), 10, norm=norm)
            assert sum(weight.numel() for weight in model.parameters()) == 11_173_962
            layers = [one for one in model.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
            shortcuts = [one for one in layers if getattr(one, "kernel_size", None) == (1, 1)]
            assert len(layers) - len(shortcuts) == 18


def test_every_group_has_two_channels_where_there_are_two(subtests):
    for width in (1, 2, 4, 6, 8, 24, 64):
        with subtests.test(width=width), torch.device("meta"):
            for layer in ResNet18((1, 8, 8), 3, width=width).modules():
                if isinstance(layer, nn.GroupNorm) and layer.num_channels % 2 == 0:
                    assert layer.num_channels // layer.num_groups >= 2
                    assert layer.num_groups <= 32


def test_a_sample_by_itself_gets_the_same_logits_with_group_norm():
    torch.manual_seed(0)
    model = ResNet18((1, 8, 8), 3, width=8).double()
    inputs = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(inputs)[:1], model(inputs[:1]))


def test_batch_norm_keeps_its_buffers_in_training_and_uses_them_in_evaluation():
    torch.manual_seed(0)
    model = ResNet18((1, 8, 8), 3, norm="batch", width=4)
    inputs = 3 + 2 * torch.randn(64, 1, 8, 8)
    fresh = {name: buffer.clone() for name, buffer in model.named_buffers()}
    in_training = model(inputs)
    assert all(torch.equal(buffer, fresh[name]) for name, buffer in model.named_buffers())
    assert not torch.allclose(in_training, model.eval()(inputs), atol=1e-2)

    # As the docstring says: estimate the statistics, then evaluation agrees with training.
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats, layer.momentum = True, None
            layer.reset_running_stats()
    model(inputs)
    torch.testing.assert_close(model.eval()(inputs), in_training, rtol=0.1, atol=0.05)


def test_width_is_checked():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        ResNet18((3, 32, 32), 10, width=0)
