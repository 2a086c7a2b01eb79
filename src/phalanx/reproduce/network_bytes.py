"""The networks whose traffic papers count, by the shapes of their tensors."""

import math
from collections.abc import Sequence

import torch

from phalanx.compression import Compressor
from phalanx.models import ResNet18

MEBI = 2**20
"""Bytes of what these papers call a megabyte."""
RESNET18_STEPS = 24
"""Steps an epoch: 50,000 images in batches of 128 on each of 16 workers, the last one not whole."""
LSTM_STEPS = 70
"""Steps an epoch of the language model, as its published dense traffic implies."""

Shapes = Sequence[tuple[int, ...]]


def resnet18_shapes() -> list[tuple[int, ...]]:
    """Tensors of ResNet-18 for images of 32 x 32 pixels and ten classes."""
    return [tuple(one.shape) for one in ResNet18((3, 32, 32), 10).parameters()]


def lstm_shapes() -> list[tuple[int, ...]]:
    """Tensors of the language model: three layers of 650 on WikiText-2, with tied embeddings."""
    gates = 4 * 650
    layers = [(gates, 650), (gates, 650), (gates,), (gates,)]
    return [(28869, 650), *(3 * layers), (28869,)]


def num_values(shapes: Shapes) -> int:
    """Values of all tensors."""
    return sum(math.prod(shape) for shape in shapes)


def message_values(compressor: Compressor, shapes: Shapes) -> int:
    """Values in a worker's messages of fixed size, seeds and the like not counted."""
    layouts = [compressor.layout(shape, torch.float32) for shape in shapes]
    return sum(part.most for layout in layouts for part in layout if part.dtype.is_floating_point)


def mebibytes_an_epoch(values: int | float, steps: int) -> float:
    """Traffic of a worker, as the papers count it: four bytes a value, whoever receives it."""
    return 4 * values * steps / MEBI
