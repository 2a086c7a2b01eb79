"""Network width and large batches: gradient diversity beside the epochs that batches take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import TensorDataset

from phalanx.batch_size import (
    GradientDiversity,
    LargestBatch,
    epochs_to_accuracy,
    gradient_diversity,
    largest_batch,
)
from phalanx.data import Digits, Splits
from phalanx.fetch import fetch
from phalanx.models import MLP
from phalanx.randomness import generator, seeded
from phalanx.reporting import Plot, Table
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe, verdict
from phalanx.training import evaluate

_SMALL_RATE = 0.01
_POINTS = 5
_NOTES = (
    "Data: scikit-learn's digits; the linear networks see Gaussian inputs, labels and weights.",
    "The networks of digits have ReLU, He's initial weights and nearly the same number of "
    "parameters; one is the wider, the fewer layers it has.",
    "Diversity is that of all training samples, exactly; over points and seeds, mean squared norms "
    "of gradients are divided by those of their means, as single ratios jump.",
    "At equal loss means: at five points, five steps apart, from where the loss on the training "
    "data is at most the target, in a descent with small steps (rate 0.01, batches of 16). With "
    "steps of 0.05 noise hides the order of the networks.",
    "Epochs are those of plain SGD until the accuracy on the training data is reached, with the "
    "best of the learning rates for each batch size.",
    "The paper's own figures are plots of residual and fully connected networks; none is quoted.",
)


@dataclass(frozen=True)
class Shape:
    """One network of digits, and what was measured of it, over all seeds."""

    hidden: tuple[int, ...]
    """Widths."""
    num_parameters: int
    """Weights and biases."""
    untrained: float
    """Diversity of the initial weights."""
    at_loss: float
    """Diversity at the target loss; NaN if no run reached it."""
    sweep: LargestBatch
    """Epochs of each batch size."""

    @property
    def name(self) -> str:
        """Depth and width."""
        return f"{len(self.hidden)} x {self.hidden[0]}"


@dataclass(frozen=True)
class LargeBatchWidth(Recipe):
    """Diversity of linear networks and of networks of digits; and batch sizes that they stand.

    Cost: in quick mode about a minute on two cores.
    Source: Chen, Wang, Zhao, Papailiopoulos and Koutris, "The Effect of Network Width on the
    Performance of Large-batch Training", NeurIPS 2018.
    """

    name: ClassVar[str] = "large-batch-width"
    paper: ClassVar[str] = (
        "Chen, Wang, Zhao, Papailiopoulos and Koutris, The Effect of Network Width on the "
        "Performance of Large-batch Training, NeurIPS 2018"
    )

    linear_widths: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 200)
    """Hidden units of the linear networks (K), growing."""

    num_inputs: int = 50
    """Inputs of the linear networks (d)."""

    num_samples: int = 200
    """Samples that they see (n)."""

    draws: int | None = None
    """Draws of inputs, labels and weights; by default 20, or 200 in full."""

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

    seeds: int | None = None
    """Initial weights to average diversity over; by default 3, or 10 in full."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Measures diversity, then trains; `data` is not needed."""
        draws, seeds = self.draws or (200 if full else 20), self.seeds or (10 if full else 3)
        progress("linear networks")
        linear = {width: self.linear(width, draws) for width in self.linear_widths}
        splits = Digits().load()
        shapes = []
        for depth, width in self.layers:
            progress(f"digits: {depth} x {width}")
            shapes.append(self._shape((width,) * depth, splits, seeds))
        return Findings(
            answer=_answer(shapes),
            findings=self._findings(linear, shapes),
            tables=(self._linear_table(linear), _table(shapes, self.loss), self._epochs(shapes)),
            plots=(
                _linear_plot(linear, self.limit),
                _plot(shapes, self.batch_sizes, self.most_epochs),
            ),
            notes=_NOTES,
            settings={
                "draws": draws,
                "seeds": seeds,
                "loss": self.loss,
                "accuracy": self.accuracy,
                "most_epochs": self.most_epochs,
                "full": full,
            },
        )

    @property
    def limit(self) -> float:
        """What the ratio of expectations tends to as the linear networks get wide."""
        n, d = self.num_samples, self.num_inputs
        return n * d / (n + d)

    def linear(self, width: int, draws: int) -> float:
        """Expected mean squared norm over expected squared norm of the mean: untrained weights."""
        found = []
        for draw in range(draws):
            source = generator("linear networks", width, draw)
            model = nn.Sequential(
                nn.Linear(self.num_inputs, width, bias=False), nn.Linear(width, 1, bias=False)
            )
            for value in model.parameters():
                nn.init.normal_(value, generator=source)
            inputs = torch.randn(self.num_samples, self.num_inputs, generator=source)
            labels = torch.randn(self.num_samples, 1, generator=source)
            data = TensorDataset(inputs, labels)
            found.append(gradient_diversity(model, data, mse_loss, num_samples=None))
        return _pooled(found)

    def _shape(self, hidden: tuple[int, ...], splits: Splits, seeds: int) -> Shape:
        untrained, at_loss = [], []
        for seed in range(seeds):
            model = _network(hidden, splits, seed)
            untrained.append(self._diversity(model, splits))
            at_loss += self._trained(model, splits, seed)
        model, best = _network(hidden, splits, 0), dict.fromkeys(self.batch_sizes, self.most_epochs)

        def epochs(size: int, rate: float) -> int | None:
            found = epochs_to_accuracy(
                model, splits.train, size, rate, target=self.accuracy, most_epochs=best[size]
            )
            best[size] = min(best[size], found or best[size])  # a worse rate is stopped early
            return found

        sweep = largest_batch(epochs, self.batch_sizes, self.rates)
        count = sum(value.numel() for value in model.parameters())
        return Shape(hidden, count, _pooled(untrained), _pooled(at_loss), sweep)

    def _diversity(self, model: nn.Module, splits: Splits) -> GradientDiversity:
        return gradient_diversity(model, splits.train, num_samples=None)

    def _trained(self, model: nn.Module, splits: Splits, seed: int) -> list[GradientDiversity]:
        """Diversity at a few points of a descent in small steps, as soon as the loss is reached."""
        optimizer = torch.optim.SGD(model.parameters(), lr=_SMALL_RATE)
        size = len(splits.train)  # type: ignore[arg-type]
        found: list[GradientDiversity] = []
        for epoch in range(self.most_epochs):
            order = torch.randperm(size, generator=generator(seed, "order", epoch))
            for step, samples in enumerate(order.split(16)):
                if step % 5 == 0 and (found or self._loss(model, splits) <= self.loss):
                    found.append(self._diversity(model, splits))
                    if len(found) == _POINTS:
                        return found
                inputs, targets = fetch(splits.train, samples)
                optimizer.zero_grad()
                cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        return found

    def _loss(self, model: nn.Module, splits: Splits) -> float:
        return evaluate(model, cross_entropy, splits.train, splits.train).loss

    def _findings(self, linear: dict[int, float], shapes: list[Shape]) -> tuple[Finding, ...]:
        values = list(linear.values())
        wide, deep = shapes[0], shapes[-1]
        grows = values == sorted(values)
        saturates = abs(values[-1] / self.limit - 1) <= 0.1
        ordered = [one.at_loss for one in shapes]
        falling = ordered == sorted(ordered, reverse=True) and not any(map(math.isnan, ordered))
        most = max(self.batch_sizes)
        sizes = [one.sweep.batch_size or 0 for one in shapes]
        price = [_price(one) for one in shapes]
        return (
            Finding(
                "For linear networks with one hidden layer and untrained weights, the ratio of "
                "expectations grows with the width and saturates.",
                f"grows; limit n d / (n + d) = {self.limit:.3g} (derived here)",
                ", ".join(f"K={width}: {value:.3g}" for width, value in linear.items()),
                verdict([grows, saturates]),
            ),
            Finding(
                "Of networks with equally many parameters, wider ones have the larger diversity "
                f"(digits, training loss {self.loss}).",
                "wider is larger",
                ", ".join(f"{one.name}: {one.at_loss:.0f}" for one in shapes),
                verdict([falling, wide.at_loss > deep.at_loss]),
            ),
            Finding(
                "Wider ones stand larger batches: the largest one tried takes fewer times the "
                f"epochs of the smallest (batches of {most} and {min(self.batch_sizes)}).",
                "wider is less",
                ", ".join(
                    f"{one.name}: {_times(value)}" for one, value in zip(shapes, price, strict=True)
                ),
                verdict([price[0] < price[-1], price == sorted(price)]),
            ),
            Finding(
                "The largest batch that takes at most a tenth more epochs than the best one.",
                NOT_QUOTED,
                ", ".join(f"{one.name}: {size}" for one, size in zip(shapes, sizes, strict=True)),
                "—",
            ),
            Finding(
                "Diversity grows as training goes, hence the equal loss. Before:",
                NOT_QUOTED,
                ", ".join(f"{one.name}: {one.untrained:.0f}" for one in shapes),
                "—",
            ),
        )

    def _linear_table(self, linear: dict[int, float]) -> Table:
        return Table(
            "Linear networks",
            f"{self.num_inputs} inputs, {self.num_samples} samples: expected mean squared norm of "
            "the samples' gradients over the expected squared norm of their mean.",
            ("width", "diversity", "of the limit"),
            tuple((width, value, value / self.limit) for width, value in linear.items()),
        )

    def _epochs(self, shapes: list[Shape]) -> Table:
        rows = [
            (one.name, trial.batch_size, trial.epochs, trial.rate)
            for one in shapes
            for trial in one.sweep.trials
        ]
        return Table(
            "Epochs to the accuracy",
            f"Until {100 * self.accuracy:.0f} % of the training data are right, in at most "
            f"{self.most_epochs} epochs, with the best learning rate.",
            ("depth x width", "batch", "epochs", "learning rate"),
            tuple(rows),
        )


def _network(hidden: tuple[int, ...], splits: Splits, seed: int) -> nn.Module:
    with seeded(seed, "weights"):
        model = MLP(splits.input_shape, splits.num_classes, hidden)
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return model


def _pooled(found: Sequence[GradientDiversity]) -> float:
    """Ratio of means: single ratios jump with the gradient's norm. NaN where there are none."""
    if not found:
        return math.nan
    return sum(one.mean_square for one in found) / sum(one.square_of_mean for one in found)


def _price(shape: Shape) -> float:
    """Epochs with the largest batch relative to those with the smallest; infinity for never."""
    first, last = shape.sweep.trials[0].epochs, shape.sweep.trials[-1].epochs
    return last / first if first and last else math.inf


def _times(value: float) -> str:
    return "never reached" if math.isinf(value) else f"{value:.3g} times"


def _answer(shapes: list[Shape]) -> str:
    wide, deep = shapes[0], shapes[-1]
    if math.isnan(wide.at_loss) or math.isnan(deep.at_loss):
        return "The loss at which networks were to be compared was not reached by all of them."
    return (
        f"At equal loss the widest network ({wide.name}) has {wide.at_loss / deep.at_loss:.1f} "
        f"times the gradient diversity of the deepest ({deep.name}); its largest batch takes "
        f"{_times(_price(wide))} the epochs of its smallest, that of the deepest "
        f"{_times(_price(deep))}."
    )


def _table(shapes: list[Shape], loss: float) -> Table:
    return Table(
        "Gradient diversity on digits",
        f"Untrained, and as soon as the training loss is at most {loss}.",
        ("depth x width", "parameters", "untrained", "at equal loss"),
        tuple((one.name, one.num_parameters, one.untrained, one.at_loss) for one in shapes),
    )


def _linear_plot(linear: dict[int, float], limit: float) -> Plot:
    def draw(ax: Axes) -> None:
        ax.plot(list(linear), list(linear.values()), color=COLOURS[0], marker="o")
        ax.axhline(limit, color=COLOURS[1], linestyle="--", label="limit")
        ax.set(xscale="log", xlabel="width of the hidden layer", ylabel="gradient diversity")
        ax.legend()

    title = "Diversity of linear networks"
    caption = "Untrained networks with one hidden layer, against its width."
    ends = f"From {min(linear.values()):.3g} to {max(linear.values()):.3g}; limit {limit:.3g}"
    return Plot(title, caption, f"{title}. {ends}.", draw)


def _plot(shapes: list[Shape], sizes: tuple[int, ...], most_epochs: int) -> Plot:
    def draw(ax: Axes) -> None:
        for one, colour in zip(shapes, COLOURS, strict=False):
            known = [trial for trial in one.sweep.trials if trial.epochs]
            ax.plot(
                [trial.batch_size for trial in known],
                [trial.epochs for trial in known if trial.epochs],
                color=colour,
                marker="o",
                label=one.name,
            )
        ax.set(xscale="log", yscale="log", xlabel="batch size", ylabel="epochs to the accuracy")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.set_ylim(0.8, 1.2 * most_epochs)
        ax.legend(title="depth x width")

    title = "Epochs against batch size"
    caption = "With the best learning rate for each size; where a point is missing none sufficed."
    ends = "; ".join(f"{one.name}: {_times(_price(one))}" for one in shapes)
    return Plot(title, caption, f"{title}. Largest to smallest batch, {ends}.", draw)
