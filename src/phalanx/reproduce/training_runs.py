"""Training runs of a recipe: each a title, a method and what bad workers do; all in run folders."""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from phalanx.aggregation import Aggregator
from phalanx.attacks import Attack, RandomWorkers
from phalanx.coding import Code
from phalanx.data import Splits
from phalanx.errors import TooManyByzantineError
from phalanx.randomness import seeded
from phalanx.reporting import Row, RunRecord, Table, load_run
from phalanx.reporting.wording import difference, percent
from phalanx.reproduce.base import Progress
from phalanx.training import train
from phalanx.training.run import MakeOptimizer


@dataclass(frozen=True)
class Case:
    """One run."""

    title: str
    """What tables and plots call it; no two of a recipe are alike."""
    method: Code | Aggregator
    """The code or the rule."""
    attack: Attack | None = None
    """What bad workers do; None for no drill."""
    num_byzantine: int = 0
    """How many are bad, drawn afresh every round."""


@dataclass(frozen=True)
class Experiment:
    """What all runs of an experiment have in common."""

    splits: Splits
    """Data to train and test on."""
    model: nn.Module
    """As it is before the first round; never changed."""
    optimizer: MakeOptimizer
    """Makes the optimizer."""
    num_workers: int
    """Workers under a rule; a code says its own."""
    batch_size: int
    """Samples a round."""
    steps: int
    """Rounds."""

    def run(self, cases: Iterable[Case], out: Path, progress: Progress) -> dict[str, RunRecord]:
        """Run folders of all cases, read back, by title."""
        records, cases = {}, list(cases)
        for number, case in enumerate(cases):
            progress(f"training {number + 1} of {len(cases)}: {case.title}")
            folder = out / case.title.replace(", ", "-").replace(" ", "-")
            # A rule that loses the weights to the attack stops with an error: its folder says so.
            with suppress(TooManyByzantineError):
                self._train(case, folder)
            records[case.title] = load_run(folder)
        return records

    def _train(self, case: Case, folder: Path) -> None:
        method = case.method
        train(
            copy.deepcopy(self.model),
            self.splits.train,
            method if isinstance(method, Code) else None,
            rule=method if isinstance(method, Aggregator) else None,
            num_workers=self.num_workers,
            attack=case.attack,
            byzantine=RandomWorkers(case.num_byzantine) if case.attack else None,
            optimizer=self.optimizer,
            steps=self.steps,
            batch_size=self.batch_size,
            test=self.splits.test,
            out=folder,
            evaluate_every=max(1, self.steps // 5),
            checkpoint_every=self.steps,
            title=case.title,
        )


def fresh(make: Callable[[tuple[int, ...], int], nn.Module], splits: Splits) -> nn.Module:
    """A model for the data, with the same weights every time."""
    with seeded(0, "model"):
        return make(splits.input_shape, splits.num_classes)


def training_table(rows: Mapping[str, Row]) -> Table:
    """How the runs ended."""
    return Table(
        "Training",
        "Final test accuracy, largest weight difference relative to the largest weight of the run "
        "without liars, and the liars that were named.",
        ("run", "status", "test accuracy", "relative difference", "lies", "named", "false alarms"),
        tuple(
            (
                row.title,
                row.status,
                percent(row.test_accuracy),
                difference(row.relative_difference),
                row.detection.lies,
                row.detection.caught,
                row.detection.false_alarms,
            )
            for row in rows.values()
        ),
    )
