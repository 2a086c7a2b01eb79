"""The networks whose traffic papers count, by the shapes of their tensors."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from phalanx.compression import Compressor
from phalanx.models import ResNet18
from phalanx.reproduce.base import Findings, report


@dataclass(frozen=True)
class Network:
    """What one worker sends for a network."""

    shapes: tuple[tuple[int, ...], ...]
    """Of its tensors."""
    steps: int
    """Per epoch."""

    @property
    def num_values(self) -> int:
        """Values of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes)

    def message_values(self, compressor: Compressor) -> int:
        """Values in a worker's messages of fixed size, seeds and the like not counted."""
        layouts = [compressor.layout(shape, torch.float32) for shape in self.shapes]
        return sum(
            part.most for layout in layouts for part in layout if part.dtype.is_floating_point
        )

    def megabytes(self, values: int | float) -> float:
        """Traffic per epoch as papers count it: 4 bytes per value, 2^20 bytes per megabyte."""
        return 4 * values * self.steps / 2**20


def resnet18() -> Network:
    """ResNet-18 for 50,000 images of 32 x 32 pixels, in batches of 128 on each of 16 workers."""
    parameters = ResNet18((3, 32, 32), 10).parameters()
    return Network(tuple(tuple(one.shape) for one in parameters), steps=24)  # the last not whole


def lstm() -> Network:
    """Three layers of 650 on WikiText-2, tied embeddings; steps as its published traffic has."""
    gates = 4 * 650
    layers = [(gates, 650), (gates, 650), (gates,), (gates,)]
    return Network(((28869, 650), *(3 * layers), (28869,)), steps=70)


def megabytes_claim(
    told: Mapping[str, Any], what: str, published: Iterable[int], ours: Iterable[int | float]
) -> Findings:
    """That published megabytes are, rounded, those that follow from the shapes."""
    theirs, own = list(published), [round(one) for one in ours]
    holds = [one == other for one, other in zip(own, theirs, strict=True)]
    return report(told, {"megabytes": holds}, {"what": what, "published": theirs, "ours": own})
