"""Training runs that are held against one another by their test accuracy, as recipes need them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
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
from phalanx.attacks import Attack, FixedWorkers
from phalanx.data import Digits, JpegArchive, NpzFile, Shards, Splits
from phalanx.errors import TooManyByzantineError
from phalanx.randomness import seeded
from phalanx.training import WorkerMomentum, train

MakeModel = Callable[[tuple[int, ...], int], nn.Module]
Verdict = Literal["yes", "no", "partly"]
_COUNTED = 5  # evaluations at the end that are averaged, as in the papers' logs
_EVALUATIONS = 20  # a run


@dataclass(frozen=True)
class Trials:
    """What the runs of a table have in common."""

    splits: Splits
    """The data."""
    model: MakeModel
    """Called with the shape of an input and the number of classes."""
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
        shards: Shards | None = None,
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


def images(data: Path | None, names: Sequence[str], family: str) -> tuple[Splits, str, bool]:
    """The data of a full run, what it is, and whether it is what the paper used.

    Args:
        data: an `.npz` file, or a folder in which the first of `names` that is there is taken.
        names: files by the name of what they hold.
        family: what the data are, for the note.
    """
    found = [data] if data is not None and data.is_file() else []
    if data is not None and data.is_dir():
        found = [data / name for name in names if (data / name).is_file()]
    if not found:
        origin = f"scikit-learn's digits, 8 x 8 pixels; full runs take {family} where it is given"
        return Digits().load(), origin, False
    kind = JpegArchive if "jpeg" in found[0].name else NpzFile
    splits = kind(found[0]).load()
    return splits, f"{found[0].name}, {len(splits.train)} training images", True  # type: ignore[arg-type]


def verdict(shown: Sequence[bool]) -> Verdict:
    """Whether the figures show what is claimed: all of them, some of them, none.

    >>> verdict([True, True]), verdict([True, False]), verdict([False])
    ('yes', 'partly', 'no')
    """
    return "yes" if all(shown) else "partly" if any(shown) else "no"


def figures(values: Sequence[float | None]) -> str:
    """Accuracies in percent, one after the other.

    >>> figures([12.34, None])
    '12.3 / —'
    """
    return " / ".join("—" if value is None else f"{value:.1f}" for value in values)


def above(one: float | None, other: float | None, by: float = 0.0) -> bool:
    """Whether an accuracy is higher by so many points; a run that stopped has none."""
    return (one or 0.0) >= (other or 0.0) + by


def device_for(full: bool) -> str:
    """Where a recipe computes: full runs on a GPU, if there is one."""
    return "cuda" if full and torch.cuda.is_available() else "cpu"
