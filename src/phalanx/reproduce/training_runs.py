"""Training runs of recipes about bad workers: kept in run folders, or told by their accuracy."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import Dataset

from phalanx.aggregation import (
    Aggregator,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    TrimmedMean,
)
from phalanx.attacks import Attack, FixedWorkers, RandomWorkers
from phalanx.coding import Code
from phalanx.data import Partitioner, Splits
from phalanx.errors import TooManyByzantineError
from phalanx.randomness import seeded
from phalanx.reporting import Row, RunRecord, Table, load_run
from phalanx.reporting.format import difference, percent
from phalanx.reproduce.base import MakeModel, Progress
from phalanx.training import train
from phalanx.training.run import MakeOptimizer
from phalanx.transforms import WorkerMomentum

_COUNTED = 5  # evaluations at the end that are averaged, as in the papers' logs
_EVALUATIONS = 20  # a run


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
    """Runs that are kept in folders; what they have in common."""

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


def fresh(make: MakeModel, splits: Splits) -> nn.Module:
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


@dataclass(frozen=True)
class Trials:
    """Runs that are held against one another by their test accuracy; what they have in common."""

    splits: Splits
    """The data."""
    model: MakeModel
    """Makes the model."""
    num_workers: int
    """Workers, the bad ones among them (n)."""
    samples: int
    """Samples a worker and round."""
    steps: int
    """Rounds of a run."""
    rate: float = 0.1
    """Learning rate of plain SGD."""
    drop_at: int | None = None
    """The round from which the learning rate is a tenth; None for never."""
    seeds: Sequence[int] = (0,)
    """A run each, of which the mean counts."""
    device: str = "cpu"
    """Where to compute."""

    def accuracy(
        self,
        rule: Aggregator,
        attack: Attack | None = None,
        num_byzantine: int = 0,
        *,
        worker_momentum: WorkerMomentum | None = None,
        shards: Partitioner | None = None,
        test: Dataset[Any] | None = None,
    ) -> float | None:
        """Test accuracy in percent, to a tenth, over the last five evaluations and all seeds.

        Args:
            rule: the decoder.
            attack: what the first `num_byzantine` workers do in every round.
            num_byzantine: how many are bad.
            worker_momentum: what workers send.
            shards: who holds which samples.
            test: other data to test on.

        Returns:
            The accuracy; None if the rule stopped, as numbers were no longer finite.
        """
        staged: dict[str, Any] = {"worker_momentum": worker_momentum, "shards": shards}
        if attack is not None and num_byzantine:
            staged |= {"attack": attack, "byzantine": FixedWorkers(list(range(num_byzantine)))}
        try:
            runs = [self._run(rule, seed, test or self.splits.test, staged) for seed in self.seeds]
        except TooManyByzantineError:
            return None
        return round(100 * mean(runs), 1)

    def _run(
        self, rule: Aggregator, seed: int, test: Dataset[Any], staged: dict[str, Any]
    ) -> float:
        with seeded(seed, "weights"):
            model = self.model(self.splits.input_shape, self.splits.num_classes).to(self.device)
        rates: list[MultiStepLR] = []

        def optimizer(parameters: Any) -> Optimizer:
            made = SGD(parameters, lr=self.rate)
            rates.append(MultiStepLR(made, [self.drop_at or self.steps]))
            return made

        run = train(
            model,
            self.splits.train,
            rule=rule,
            num_workers=self.num_workers,
            optimizer=optimizer,
            steps=self.steps,
            batch_size=self.samples * self.num_workers,
            seed=seed,
            test=test,
            evaluate_every=max(1, self.steps // _EVALUATIONS),
            on_round=lambda _: rates[0].step(),
            **staged,
        )
        found: list[float] = [
            entry["test_accuracy"] for entry in run.rounds if "test_accuracy" in entry
        ]
        return mean(found[-_COUNTED:])


def robust_rules(num_byzantine: int, radius: float, iterations: int) -> dict[str, Aggregator]:
    """The rules that these papers compare, told what to survive; the plain mean first.

    Args:
        num_byzantine: workers, or what is made of them, that may be bad.
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
