"""One cell: a method under an attack, on a split, with a seed."""

import math
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from phalanx.aggregation import Aggregator
from phalanx.attacks import Attack, RandomWorkers, Schedule
from phalanx.coding import Code
from phalanx.comparison.outcome import Outcome, medians
from phalanx.data import DataSource, Digits, Partitioner, Splits
from phalanx.errors import TooManyByzantineError
from phalanx.experiments.identity import description, digest
from phalanx.losses import cross_entropy
from phalanx.models import MLP
from phalanx.randomness import seeded
from phalanx.training import evaluate, train
from phalanx.training.run import MakeOptimizer, default_optimizer
from phalanx.transforms import WorkerMomentum

MakeModel = Callable[[tuple[int, ...], int], nn.Module]
_SAMPLES = 16  # a worker and round, unless the batch size is given


@dataclass(frozen=True)
class Setting:
    """What all cells of a grid share."""

    num_workers: int = 15
    """Workers of every run."""
    num_byzantine: int = 3
    """How many of them are bad in a round, and what methods are told."""
    byzantine: Schedule | None = None
    """Who is bad when; `num_byzantine` workers drawn afresh every round if not given."""
    data: DataSource = Digits()  # noqa: RUF009 - frozen
    """What to train and test on."""
    model: MakeModel = MLP
    """Called with the shape of an input and the number of classes."""
    optimizer: MakeOptimizer = default_optimizer
    """Makes the optimizer from the parameters."""
    steps: int = 100
    """Rounds of every run."""
    batch_size: int | None = None
    """Samples a round over all workers; 16 a worker if not given."""
    evaluate_every: int = 20
    """Rounds between evaluations."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "steps", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= 2 * self.num_byzantine < self.num_workers:
            raise ValueError(
                "num_byzantine must be at least 0 and below num_workers / 2, "
                f"got {self.num_byzantine} of {self.num_workers}"
            )
        if self.samples < 1 or self.samples % self.num_workers:
            raise ValueError(
                f"batch_size must be a multiple of the {self.num_workers} workers, "
                f"got {self.batch_size}"
            )
        self.schedule.byzantine(0, self.num_workers, 0)  # it must fit the number of workers

    @property
    def samples(self) -> int:
        """Samples a round."""
        return _SAMPLES * self.num_workers if self.batch_size is None else self.batch_size

    @property
    def schedule(self) -> Schedule:
        """Who is bad when."""
        return self.byzantine or RandomWorkers(self.num_byzantine)


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    method: Aggregator | Code
    """The rule or code."""
    attack: Attack | None
    """What bad workers do; None if nobody is bad."""
    shards: Partitioner | None
    """Who holds which samples; None if all workers draw from the whole data set."""
    worker_momentum: WorkerMomentum | None
    """What workers average before they send; None if they send their gradients."""
    seed: int
    """Of everything random."""
    setting: Setting
    """What all cells share."""
    unfit: str | None = field(default=None, compare=False)
    """Why the method cannot be told the grid's numbers, if so."""

    def arguments(self) -> dict[str, Any]:
        """What `phalanx.train` is called with, but for the model and the data."""
        setting = self.setting
        given: dict[str, Any] = {
            "attack": self.attack,
            "byzantine": None if self.attack is None else setting.schedule,
            "optimizer": setting.optimizer,
            "steps": setting.steps,
            "batch_size": setting.samples,
            "seed": self.seed,
            "evaluate_every": setting.evaluate_every,
        }
        if isinstance(self.method, Code):
            given["code"] = self.method
        else:
            given |= {"rule": self.method, "num_workers": setting.num_workers}
        if self.shards is not None:
            given["shards"] = self.shards
        if self.worker_momentum is not None:
            given["worker_momentum"] = self.worker_momentum
        return given

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that its outcome depends on, as plain values."""
        made = {"data": self.setting.data, "model": self.setting.model}
        described: dict[str, Any] = description(made | self.arguments())
        return described

    @cached_property
    def identity(self) -> str:
        """A hash of `config`: cells with the same one have the same outcome."""
        return digest(self.config)

    def why_not(self) -> str | None:
        """Why its parts do not go together; None if they do."""
        if self.unfit is not None:
            return self.unfit
        if isinstance(self.method, Code):
            return self._why_no_code(self.method)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is warned again when the cell runs
                self.method.num_tolerated(self.setting.num_workers)
        except ValueError as error:
            return str(error)
        return None

    def _why_no_code(self, code: Code) -> str | None:
        if self.shards is not None:
            return "a code has several workers compute the same samples, a split gives each its own"
        if self.setting.samples % code.num_partitions:
            return (
                f"batch_size must be a multiple of the {code.num_partitions} partitions, "
                f"got {self.setting.samples}"
            )
        return None

    def build(self, splits: Splits) -> nn.Module:
        """The untrained model; its weights depend on the seed alone."""
        with seeded(self.seed, "weights"):
            return self.setting.model(splits.input_shape, splits.num_classes)

    def measure(self, splits: Splits) -> Outcome:
        """Runs it with one thread: nothing but what the arguments say has a part in the outcome.

        Args:
            splits: the data, loaded.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                return self._measured(splits, caught)
        finally:
            torch.set_num_threads(threads)

    def _measured(self, splits: Splits, caught: list[warnings.WarningMessage] | None) -> Outcome:
        began = time.perf_counter()
        rounds: list[dict[str, Any]] = []
        found: dict[str, Any] = {"status": "finished"}
        try:
            model = self.build(splits)
            train(model, splits.train, test=splits.test, on_round=rounds.append, **self.arguments())
            found["test_accuracy"] = rounds[-1]["test_accuracy"]
            found["test_loss"] = _finite(rounds[-1]["test_loss"])
        except TooManyByzantineError as error:
            found = {"status": "stopped", "reason": str(error)}
            end = evaluate(model, cross_entropy, splits.test, splits.train)
            found |= {"test_accuracy": end.accuracy, "test_loss": _finite(end.loss)}
        except Exception as error:  # a cell that fails is a result, and the others go on
            found = {"status": "failed", "reason": _reason(error)}
        told = tuple(dict.fromkeys(str(one.message) for one in caught or ()))
        seconds = time.perf_counter() - began
        return Outcome(**found, **medians(rounds), seconds=seconds, warnings=told)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _reason(error: Exception) -> str:
    """The error in a line, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
