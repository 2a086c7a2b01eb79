"""Evaluations of a run: which data sets, which metrics, under which names."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.data import Dataset

from phalanx.evaluation import Metric, evaluate
from phalanx.training.job import Job


@dataclass(frozen=True)
class Evaluator:
    """Evaluations of a run's model, of equal names in metrics, results and reports."""

    sets: Mapping[str, Dataset[tuple[Tensor, ...]]] = field(default_factory=dict)
    """Data sets by name: `test`, `validation`."""

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Metrics beside loss and accuracy, by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that is measured, such as `test_accuracy`."""
        kinds = ("accuracy", "loss", *self.metrics)
        return tuple(f"{prefix}_{kind}" for prefix in self.sets for kind in kinds)

    def measure(self, job: Job) -> dict[str, float | None]:
        """All of it, for the model as it is; None for an accuracy where there are no classes."""
        measured: dict[str, float | None] = {}
        for prefix, data in self.sets.items():
            found = evaluate(job.model, job.loss, data, job.dataset, self.metrics)
            values = {"accuracy": found.accuracy, "loss": found.loss, **found.metrics}
            measured |= {f"{prefix}_{kind}": value for kind, value in values.items()}
        return measured
