"""What recipes about Byzantine workers share: the rules that they compare, tables and plots."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

from phalanx.aggregation import (
    Aggregator,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    TrimmedMean,
)
from phalanx.data import DataSource, LongTailedPartitioner, Splits
from phalanx.experiments import Pivot, Record, Records, line_plot
from phalanx.experiments.records import Value
from phalanx.randomness import generator
from phalanx.reporting import Table
from phalanx.reporting.format import difference, percent
from phalanx.reproduce.base import Findings
from phalanx.transforms import WorkerMomentum

REFERENCE = {"rule": Mean(), "code": None, "attack": None, "byzantine": None}
"""The mean without attack: with its final weights those of other runs are compared."""
CIFAR = ("cifar10.npz", "cifar10_12k.npz"), "CIFAR-10"
"""Files of CIFAR-10, of which the first that is there is taken."""


class SmallConvNet(nn.Sequential):
    """Three 3 x 3 convolutions of stride 2 (16, 32 and 32 filters), and a linear layer.

    >>> import torch
    >>> SmallConvNet((3, 32, 32), 10)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 10])
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        """A model with weights drawn from torch's global generator."""
        before, *sides = input_shape
        layers: list[nn.Module] = []
        for filters in (16, 32, 32):
            layers += [nn.Conv2d(before, filters, 3, stride=2, padding=1), nn.ReLU()]
            before, sides = filters, [-(-side // 2) for side in sides]
        inputs = before * sides[0] * sides[1]
        super().__init__(*layers, nn.Flatten(), nn.Linear(inputs, num_classes))


@dataclass(frozen=True)
class OtherTest(DataSource):
    """The data of a source with another test set."""

    source: DataSource
    """The data."""
    first: int | None = None
    """How many test samples are left, the first ones; all by default."""
    tail: float = 1.0
    """Share of its samples that each class keeps of what the class before keeps, a long tail."""

    def load(self) -> Splits:
        """The training set as it is, and what is left of the test set."""
        splits = self.source.load()
        inputs, targets = (column[: self.first] for column in splits.test[:])
        if self.tail < 1:
            source = generator(0, "long tail")
            (kept,) = LongTailedPartitioner(self.tail).split(targets, 1, source)
            inputs, targets = inputs[kept], targets[kept]
        return replace(splits, test=TensorDataset(inputs, targets))


def robust_rules(num_byzantine: int, radius: float, iterations: int) -> dict[str, Aggregator]:
    """The rules that these papers compare, told what to survive; the plain mean first.

    Args:
        num_byzantine: messages, or mixtures of them, that may be Byzantine.
        radius: of centred clipping (tau).
        iterations: of centred clipping (L).
    """
    return {
        "mean": Mean(),
        "Krum": Krum(num_byzantine),
        "median": CoordinateMedian(num_byzantine),
        "RFA": GeometricMedian(num_byzantine, max_iterations=3),
        "trimmed mean": TrimmedMean(num_byzantine),
        "centred clipping": CenteredClipping(radius, iterations, num_byzantine),
    }


def momentum(beta: float) -> dict[str, Any]:
    """Worker momentum, an average, as an argument; none if 0."""
    return {"transforms": [WorkerMomentum(beta)]} if beta else {}


def side_by_side(
    title: str,
    caption: str,
    ours: Pivot,
    paper: Mapping[tuple[Any, Any], float | None],
    header: str,
) -> Findings:
    """A table of the paper's figures by row and column, as far as there are any, beside ours.

    Its `header` is told `who` it is, and which `column`.
    """
    columns = [["rule", *ours.rows]]
    for column in ours.columns:
        text = ", ".join(map(str, column)) if isinstance(column, tuple) else column
        logged = [paper.get((row, column)) for row in ours.rows]
        for who, shown in (("paper", logged), ("ours", ours.column(column))):
            if who == "ours" or any(one is not None for one in shown):
                columns.append([header.format(column=text, who=who), *shown])
    headers, *rows = zip(*columns, strict=True)
    return Findings("", [], [Table(title, caption, headers, tuple(rows))])


def training_table(found: Iterable[Record], title: str = "Training") -> Findings:
    """How runs ended that were compared with the reference."""
    columns: dict[str, Value] = {
        "run": "run",
        "status": lambda one: one.status,
        "test accuracy": lambda one: percent(one["test_accuracy"]),
        "relative difference": lambda one: difference(gap(one)),
        "lies": "lies",
        "named": "caught",
        "false alarms": "false_alarms",
    }
    caption = (
        "Final test accuracy, largest weight difference relative to the largest weight of the run "
        "without Byzantine workers, their messages (lies), and how many of those were named, or "
        "suspected without proof."
    )
    return Findings("", [], [Records(found).table(title, caption, columns)])


def gap(one: Record) -> float:
    """The largest relative weight difference; infinite where weights are not finite."""
    apart: float | None = one["relative_difference"]
    return float("inf") if apart is None else apart


def by_run(found: Iterable[Record]) -> dict[str, Record]:
    """Each record by what its run is called."""
    return {one["run"]: one for one in found}


def accuracy_plot(attack: str, caption: str, found: Iterable[Record]) -> Findings:
    """Test accuracy over rounds of runs under an attack."""
    lines = {
        one["run"]: (one["evaluated"], [100 * share for share in one["accuracies"]])
        for one in found
    }
    title = f"Test accuracy under attack: {attack}"
    return Findings("", [], [], [line_plot(title, caption, lines, "rounds", "test accuracy (%)")])
