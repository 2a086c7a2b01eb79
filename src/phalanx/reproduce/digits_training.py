"""What the recipes of compressors share: their cells of training on digits, and the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from phalanx.compression import Compressor
from phalanx.data import Digits
from phalanx.experiments import Cell, Records, compressed_run, grid, pivot, tuned
from phalanx.models import MLP
from phalanx.reporting import Table
from phalanx.reproduce.base import Measure, Scope


@dataclass(frozen=True)
class DigitsTraining:
    """Training on digits by four workers, with several compressors."""

    methods: ClassVar[Mapping[str, Compressor]]
    """What is compared."""

    epochs: int = 20
    """Passes over the digits."""
    num_seeds: int | None = None
    """Runs that are averaged; by default 1, or 8 in full."""
    rates: tuple[float, ...] = (0.05, 0.1)
    """Learning rates, of which each method has the one with the least training loss."""
    samples: int = 32
    """Per worker and step."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the network's hidden layers."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method with every learning rate and seed; bytes need no run."""
        seeds = range(self.seeds(scope))
        axes: dict[str, Any] = {"compressor": self.methods, "rate": self.rates, "seed": seeds}
        network = partial(MLP, hidden=self.hidden)
        fixed = {"model": network, "epochs": self.epochs, "samples": self.samples}
        return grid(compressed_run, axes, {"data": Digits(), **fixed})

    def measure(self, scope: Scope, run: Measure) -> Records:
        """The first seed chooses the learning rate of each method."""
        return tuned(self.cells(scope), "rate", "train_loss", run)

    def seeds(self, scope: Scope) -> int:
        """How many runs are averaged."""
        return self.num_seeds or (8 if scope.full else 1)


def percents(found: Records) -> dict[str, float]:
    """Mean test accuracy of every method in percent, to a tenth; runs that diverged guess."""
    means = pivot(found.where(tuned=True), "compressor", None, {"": "test_accuracy"})
    return {str(name): round(100 * means[name, ""], 1) for name in means.rows}


def training_table(found: Records) -> Table:
    """How training ended with every method, beside the bytes of its messages."""
    values = {name: name for name in ("train_loss", "rate", "message_bytes")}
    means = pivot(found.where(tuned=True), "compressor", None, values)
    return Table(
        "Training on digits",
        "Test accuracy and training loss at the end, with the learning rate of least loss, and "
        "bytes of a worker's messages in a step.",
        ("method", "test accuracy", "training loss", "learning rate", "bytes"),
        tuple(
            (name, score, float(f"{loss:.3g}"), rate, round(sent))
            for (name, score), (loss, rate, sent) in zip(
                percents(found).items(), map(means.row, means.rows), strict=True
            )
        ),
    )
