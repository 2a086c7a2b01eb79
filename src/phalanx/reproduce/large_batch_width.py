"""Network width and large batches: gradient diversity beside the epochs that batches take."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import TensorDataset

from phalanx.batch_size import (
    GradientDiversity,
    epochs_to_accuracy,
    gradient_diversity,
    largest_batch,
)
from phalanx.data import Digits
from phalanx.evaluation import evaluate
from phalanx.experiments import Cell, Record, Records, grid, load
from phalanx.fetch import fetch
from phalanx.models import MLP
from phalanx.randomness import generator, seeded
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized

_SHAPE = "depth x width"
_SMALL_RATE, _POINTS = 0.01, 5


@dataclass(frozen=True)
class LargeBatchWidth(Recipe):
    """Diversity of linear networks and of networks of digits; and batch sizes that they stand."""

    name: ClassVar[str] = "large-batch-width"

    linear_widths: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 200)
    """Hidden units of the linear networks (K), growing."""
    num_inputs: int = 50
    """Inputs of the linear networks (d)."""
    num_samples: int = 200
    """Samples that they see (n)."""
    draws: int = sized(20, 20, 200)
    """Draws of inputs, labels and weights."""
    layers: tuple[tuple[int, int], ...] = ((1, 267), (2, 108), (4, 70), (8, 48))
    """Depth and width of the networks of digits, from shallow to deep, of about equal size."""
    loss: float = 0.3
    """Training loss at which networks are compared."""
    batch_sizes: tuple[int, ...] = (16, 64, 256, 896)
    """Batches whose epochs are counted, growing."""
    rates: tuple[float, ...] = (0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0)
    """Learning rates that each of them is tried with."""
    accuracy: float = 0.97
    """On the training data: the target of these epochs."""
    most_epochs: int = 40
    """Epochs after which it is given up."""
    seeds: int = sized(1, 3, 10)
    """Initial weights to average diversity over."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Diversity by width, by network and seed, and epochs by network and batch size."""
        shapes = {f"{depth} x {n}": {"hidden": (n,) * depth} for depth, n in self.layers}
        return [
            *grid(linear_diversity, {"width": self.linear_widths}, {"recipe": self}),
            *grid(_diversities, {_SHAPE: shapes, "seed": range(self.seeds)}, {"recipe": self}),
            *grid(_epochs, {_SHAPE: shapes, "batch": self.batch_sizes}, {"recipe": self}),
        ]

    @property
    def limit(self) -> float:
        """What the ratio of expectations tends to as the linear networks get wide."""
        n, d = self.num_samples, self.num_inputs
        return n * d / (n + d)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Whether diversity grows with the width, and with it the batch recipe."""
        linear = Records(one for one in found if "width" in one.labels)
        drawn = Records(one for one in found if "seed" in one.labels)
        swept = Records(one for one in found if "batch" in one.labels)
        diversity, widths = [one["diversity"] for one in linear], self.linear_widths
        names = [str(name) for name in drawn.labels(_SHAPE)]
        at_loss, untrained = (
            [drawn.reduce(kind, _pooled, **{_SHAPE: name}) for name in names]
            for kind in ("at_loss", "untrained")
        )
        epochs = [[one["epochs"] for one in swept.where(**{_SHAPE: name})] for name in names]
        ends = [(one[0], one[-1]) for one in epochs]
        prices = [last / first if first and last else math.inf for first, last in ends]
        largest = [self._largest(one) for one in epochs]
        falling = at_loss == sorted(at_loss, reverse=True) and not any(map(math.isnan, at_loss))
        values = {
            "linear": ", ".join(f"K={one['width']}: {one['diversity']:.3g}" for one in linear),
            "recipe": self,
            "percent": 100 * self.accuracy,
            "batches": (min(self.batch_sizes), max(self.batch_sizes)),
            "at_loss": _by_name(names, map("{:.0f}".format, at_loss)),
            "untrained": _by_name(names, map("{:.0f}".format, untrained)),
            "price": _by_name(names, map(_times, prices)),
            "largest": _by_name(names, map(str, largest)),
            "wide": names[0],
            "deep": names[-1],
            "gain": at_loss[0] / at_loss[-1],
            "prices": (_times(prices[0]), _times(prices[-1])),
        }
        holds = {
            "linear": [diversity == sorted(diversity), abs(diversity[-1] / self.limit - 1) <= 0.1],
            "diversity": [falling, at_loss[0] > at_loss[-1]],
            "batches": [prices[0] < prices[-1], prices == sorted(prices)],
            "largest": None,
            "untrained": None,
        }
        rows = [
            Record(one.labels, values={**one.values, "untrained": before, "at equal loss": at})
            for one, before, at in zip(drawn.where(seed=0), untrained, at_loss, strict=True)
        ]
        lines = {"networks": (widths, diversity), "limit": (widths, [self.limit] * len(widths))}
        by_batch = {name: (self.batch_sizes, one) for name, one in zip(names, epochs, strict=True)}
        return report(
            self.told,
            holds,
            values,
            {"linear": linear, "diversity": Records(rows), "epochs": swept},
            {"linear": lines, "epochs": by_batch},
            answer="never" if math.isnan(values["gain"]) else "answer",
        )

    def _largest(self, epochs: Sequence[int | None]) -> int | None:
        known = dict(zip(self.batch_sizes, epochs, strict=True))
        return largest_batch(lambda size, _: known[size], self.batch_sizes, (0.0,)).batch_size


def linear_diversity(recipe: LargeBatchWidth, width: int) -> dict[str, float]:
    """Expected mean squared norm over expected squared norm of the mean: untrained weights."""
    found = []
    for draw in range(recipe.draws):
        source = generator("linear networks", width, draw)
        model = nn.Sequential(
            nn.Linear(recipe.num_inputs, width, bias=False), nn.Linear(width, 1, bias=False)
        )
        for value in model.parameters():
            nn.init.normal_(value, generator=source)
        inputs = torch.randn(recipe.num_samples, recipe.num_inputs, generator=source)
        labels = torch.randn(recipe.num_samples, 1, generator=source)
        data = TensorDataset(inputs, labels)
        found.append(_squares(gradient_diversity(model, data, mse_loss, num_samples=None)))
    diversity = _pooled(found)
    return {"diversity": diversity, "of the limit": diversity / recipe.limit}


def _diversities(recipe: LargeBatchWidth, hidden: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Squares of diversity before training, and summed over points at the loss."""
    data, model = load(Digits()).train, _network(hidden, seed)
    untrained = _squares(gradient_diversity(model, data, num_samples=None))
    points = [_squares(one) for one in _descend(recipe, model, data, seed)]
    at_loss = [sum(column) for column in zip(*points, strict=True)] or [0.0, 0.0]
    count = sum(value.numel() for value in model.parameters())
    return {"parameters": count, "untrained": untrained, "at_loss": at_loss}


def _descend(
    recipe: LargeBatchWidth, model: nn.Module, data: Any, seed: int
) -> Iterator[GradientDiversity]:
    """Diversity at a few points of a descent in small steps, as soon as the loss is reached."""
    optimizer, points = torch.optim.SGD(model.parameters(), lr=_SMALL_RATE), 0
    for epoch in range(recipe.most_epochs):
        order = torch.randperm(len(data), generator=generator(seed, "order", epoch))
        for step, samples in enumerate(order.split(16)):
            if step % 5 == 0 and (
                points or evaluate(model, cross_entropy, data, data).loss <= recipe.loss
            ):
                yield gradient_diversity(model, data, num_samples=None)
                points += 1
                if points == _POINTS:
                    return
            inputs, targets = fetch(data, samples)
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def _epochs(recipe: LargeBatchWidth, hidden: tuple[int, ...], batch: int) -> dict[str, Any]:
    """Epochs to the accuracy with the best learning rate."""
    data, model, best = load(Digits()).train, _network(hidden, 0), recipe.most_epochs

    def epochs(size: int, rate: float) -> int | None:
        nonlocal best
        found = epochs_to_accuracy(
            model, data, size, rate, target=recipe.accuracy, most_epochs=best
        )
        best = min(best, found or best)  # a worse rate is stopped early
        return found

    (trial,) = largest_batch(epochs, [batch], recipe.rates).trials
    return {"epochs": trial.epochs, "learning rate": trial.rate}


def _network(hidden: tuple[int, ...], seed: int) -> nn.Module:
    splits = load(Digits())
    with seeded(seed, "weights"):
        model = MLP(splits.input_shape, splits.num_classes, hidden)
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return model


def _squares(found: GradientDiversity) -> list[float]:
    return [found.mean_square, found.square_of_mean]


def _pooled(squares: Sequence[Sequence[float]]) -> float:
    """Ratio of means: single ratios jump with the gradient's norm. NaN where there are none."""
    above, below = map(sum, zip(*squares, strict=True))
    return above / below if below else math.nan


def _times(value: float) -> str:
    return "never reached" if math.isinf(value) else f"{value:.3g} times"


def _by_name(names: Sequence[str], values: Iterable[str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
