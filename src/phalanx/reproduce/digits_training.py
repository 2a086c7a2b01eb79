"""What the recipes of compressors share: their cells of training on digits, and the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from phalanx.compression import Compressor
from phalanx.data import Digits
from phalanx.experiments import Cell, Pivot, Records, compressed_run, grid, pivot, tuned
from phalanx.experiments.records import Value
from phalanx.models import MLP
from phalanx.reproduce.base import Measure, Scope, sized, to_points


@dataclass(frozen=True)
class DigitsTraining:
    """Training on digits by four workers, with several compressors."""

    methods: ClassVar[Mapping[str, Compressor]]
    """What is compared."""

    epochs: int = sized(8, 20, 20)
    """Passes over the digits."""
    num_seeds: int = sized(1, 1, 8)
    """Runs that are averaged."""
    rates: tuple[float, ...] = (0.05, 0.1)
    """Learning rates, of which each method has the one with the least training loss."""
    samples: int = 32
    """Per worker and step."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the network's hidden layers."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method with every learning rate and seed; bytes need no run."""
        seeds = range(self.num_seeds)
        axes: dict[str, Any] = {"compressor": self.methods, "rate": self.rates, "seed": seeds}
        network = partial(MLP, hidden=self.hidden)
        fixed = {"model": network, "epochs": self.epochs, "samples": self.samples}
        return grid(compressed_run, axes, {"data": Digits(), **fixed})

    def measure(self, scope: Scope, run: Measure) -> Records:
        """The first seed chooses the learning rate of each method."""
        return tuned(self.cells(scope), "rate", "train_loss", run)


def percents(found: Records) -> dict[str, float]:
    """Mean test accuracy of every method in percent, to a tenth; runs that diverged guess."""
    value = {"": "test_accuracy"}
    means = pivot(found.where(tuned=True), "compressor", None, value, to_points)
    return {str(name): means[name, ""] for name in means.rows}


def training(found: Records) -> Pivot:
    """How training ended with every method, beside the bytes of its messages: a table."""
    columns: dict[str, Value] = {
        "test accuracy": lambda one: 100 * one["test_accuracy"],
        "training loss": "train_loss",
        "learning rate": "rate",
        "bytes": "message_bytes",
    }
    return pivot(found.where(tuned=True), "compressor", None, columns)
