"""Families of networks with equally many weights, from wide to deep, and what batches cost them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset, Subset, TensorDataset

from phalanx.batch_size import GradientDiversity, epochs_to_accuracy, gradient_diversity
from phalanx.data import DataSource
from phalanx.evaluation import evaluate
from phalanx.experiments import load
from phalanx.fetch import fetch
from phalanx.models import MLP
from phalanx.randomness import generator, seeded

_SMALL_RATE, _SMALL_BATCH, _POINTS = 0.01, 16, 5


class ResidualNetwork(nn.Module):
    """Residual blocks of two 3 x 3 convolutions, all of one width, at a quarter of the sides."""

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, depth: int, width: int
    ) -> None:
        """Blocks: `depth` of them with `width` channels have 18 depth width^2 weights."""
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, stride=4, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(*self._layer(width), *self._layer(width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, num_classes)

    @staticmethod
    def _layer(width: int) -> list[nn.Module]:
        norm = nn.GroupNorm(max(width // 4, 1), width)
        return [norm, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        features = self.stem(inputs)
        for block in self.blocks:
            features = features + block(features)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def fully_connected(
    input_shape: tuple[int, ...], num_classes: int, depth: int, width: int
) -> nn.Module:
    """Hidden layers: `depth` of them with `width` units, ReLU, and He's initial weights."""
    model = MLP(input_shape, num_classes, (width,) * depth)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


@dataclass(frozen=True)
class Family:
    """Networks with about equally many weights, and what they learn."""

    model: Callable[..., nn.Module]
    """Makes one from the shape of an input, the number of classes, depth and width."""
    shapes: tuple[tuple[int, int], ...]
    """Depth and width, from shallow and wide to deep and narrow."""
    file: str
    """Of the data."""
    data: str
    """What they are called."""
    samples: int
    """So many of the first training images."""
    loss: float
    """Of training, at which diversity is compared."""
    accuracy: float
    """Of training: the target of the epochs."""

    def network(self, source: DataSource, shape: tuple[int, int], seed: int) -> nn.Module:
        """An untrained one."""
        splits = load(source)
        with seeded(seed, "weights"):
            return self.model(splits.input_shape, splits.num_classes, *shape)

    def samples_of(self, source: DataSource) -> Dataset[Any]:
        """What it learns."""
        train: Dataset[Any] = load(source).train
        return Subset(train, range(min(self.samples, len(train))))  # type: ignore[arg-type]


def diversities(
    *, source: DataSource, family: Family, shape: tuple[int, int], seed: int, most_epochs: int
) -> dict[str, Any]:
    """Squares of gradient diversity before training, and summed over points at the loss."""
    model, data = family.network(source, shape, seed), family.samples_of(source)
    untrained = squares(gradient_diversity(model, data, num_samples=None))
    points = list(_descend(model, data, family.loss, seed, most_epochs))
    at_loss = [sum(column) for column in zip(*points, strict=True)] or [0.0, 0.0]
    count = sum(value.numel() for value in model.parameters())
    return {"parameters": count, "untrained": untrained, "at_loss": at_loss}


def _descend(
    model: nn.Module, data: Dataset[Any], loss: float, seed: int, most_epochs: int
) -> Iterator[Sequence[float]]:
    """Diversity at a few points of a descent in small steps, as soon as the loss is reached."""
    optimizer, points, size = torch.optim.SGD(model.parameters(), lr=_SMALL_RATE), 0, len(data)  # type: ignore[arg-type]
    every = max(size // _SMALL_BATCH // 16, 1)
    for epoch in range(most_epochs):
        order = torch.randperm(size, generator=generator(seed, "order", epoch))
        for step, samples in enumerate(order.split(_SMALL_BATCH)):
            if step % every == 0 and (
                points or evaluate(model, cross_entropy, data, data).loss <= loss
            ):
                yield squares(gradient_diversity(model, data, num_samples=None))
                points += 1
                if points == _POINTS:
                    return
            inputs, targets = fetch(data, samples)
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def best_epochs(
    *,
    source: DataSource,
    family: Family,
    shape: tuple[int, int],
    seed: int,
    batch: int,
    rates: Sequence[float],
    most_epochs: int,
) -> dict[str, Any]:
    """Epochs to the accuracy with the best of the learning rates; None if none gets there."""
    model, data = family.network(source, shape, seed), family.samples_of(source)
    best, chosen = None, None
    for rate in rates:  # a rate that is no better is stopped as soon as that is known
        most = most_epochs if best is None else best - 1
        found = epochs_to_accuracy(
            model, data, batch, rate, target=family.accuracy, most_epochs=most, seed=seed
        )
        if found is not None:
            best, chosen = found, rate
    return {"epochs": best, "learning rate": chosen}


def squares(found: GradientDiversity) -> list[float]:
    """Mean of the squared norms, and squared norm of the mean."""
    return [found.mean_square, found.square_of_mean]


def linear_diversity(
    *, width: int, num_inputs: int, num_samples: int, draws: int
) -> dict[str, float]:
    """Expected mean squared norm over expected squared norm of the mean: untrained weights."""
    found = []
    for draw in range(draws):
        source = generator("linear networks", width, draw)
        model = nn.Sequential(
            nn.Linear(num_inputs, width, bias=False), nn.Linear(width, 1, bias=False)
        )
        for value in model.parameters():
            nn.init.normal_(value, generator=source)
        inputs = torch.randn(num_samples, num_inputs, generator=source)
        labels = torch.randn(num_samples, 1, generator=source)
        data = TensorDataset(inputs, labels)
        found.append(squares(gradient_diversity(model, data, mse_loss, num_samples=None)))
    return {"diversity": pooled(found)}


def pooled(found: Sequence[Sequence[float]]) -> float:
    """Ratio of means: single ratios jump with the gradient's norm. NaN where there are none."""
    over, under = map(sum, zip(*found, strict=True))
    return over / under if under else math.nan
