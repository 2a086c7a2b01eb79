"""Loggers: callbacks that hand the metrics of rounds to TensorBoard, W&B, trackio or MLflow."""

import importlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from phalanx.training.callbacks import Callback, Entry
from phalanx.training.run_record import Run


def scalars(entry: Entry) -> dict[str, int | float]:
    """The numbers of a round's metrics; lists of workers by how many there are.

    >>> scalars({"step": 4, "loss": 0.5, "suspects": [3, 7], "error": None})
    {'loss': 0.5, 'num_suspects': 2}
    """
    counted = ("byzantine", "suspects", "missing", "excluded")
    found: dict[str, int | float] = {}
    for name, value in entry.items():
        if name in counted:
            found[f"num_{name}"] = len(value)
        elif name != "step" and isinstance(value, int | float):
            found[name] = value
    return found


@dataclass
class TensorBoardLogger(Callback):
    """Logger to TensorBoard: a curve for every number in `metrics.jsonl`."""

    folder: str | None = None
    """Where event files go; by default the run's folder, or `runs` if it has none."""

    def on_start(self, run: Run) -> None:
        """Opens the event file; what a killed run wrote after its checkpoint is dropped."""
        _needed("tensorboard", "tensorboard", type(self))
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        folder = self.folder or str(run.folder or Path("runs"))
        self._writer = writer(folder, purge_step=run.done + 1 if run.done else None)

    def on_round(self, run: Run, entry: Entry) -> None:
        """Adds the round's numbers, at the rounds completed."""
        for name, value in scalars(entry).items():
            self._writer.add_scalar(name, value, run.done)

    def on_end(self, run: Run) -> None:
        """Closes the file."""
        if hasattr(self, "_writer"):
            self._writer.close()


@dataclass
class WandbLogger(Callback):
    """Logger to Weights & Biases, or whatever has its `init`, `log` and `finish`."""

    module: ClassVar[str] = "wandb"

    project: str = "phalanx"
    """The project that the run belongs to."""

    options: dict[str, Any] = field(default_factory=dict)
    """What else `init` takes, such as `{"mode": "offline"}`, or `id` and `resume` to go on with a
    run of theirs."""

    def on_start(self, run: Run) -> None:
        """Begins a run of theirs, of the same title."""
        self._client = _needed(self.module, self.module, type(self))
        self._client.init(**{"project": self.project, "name": run.title, **self.options})

    def on_round(self, run: Run, entry: Entry) -> None:
        """Logs the round's numbers, at the rounds completed."""
        self._client.log(scalars(entry), step=run.done)

    def on_end(self, run: Run) -> None:
        """Ends their run."""
        if hasattr(self, "_client"):
            self._client.finish()


@dataclass
class TrackioLogger(WandbLogger):
    """Logger to trackio, Hugging Face's local tracker."""

    module: ClassVar[str] = "trackio"


@dataclass
class MLflowLogger(Callback):
    """Logger to MLflow: the numbers of every round as metrics of a run of theirs."""

    experiment: str = "phalanx"
    """The experiment that the run belongs to."""

    uri: str | None = None
    """Where it is tracked; as the environment says if None."""

    run_id: str | None = None
    """A run of theirs to go on with; a new one if None."""

    def on_start(self, run: Run) -> None:
        """Begins a run of theirs, of the same title."""
        client = _needed("mlflow", "mlflow", type(self)).MlflowClient(tracking_uri=self.uri)
        if self.run_id is None:
            known = client.get_experiment_by_name(self.experiment)
            place = known.experiment_id if known else client.create_experiment(self.experiment)
            self.run_id = client.create_run(place, run_name=run.title).info.run_id
        self._client = client

    def on_round(self, run: Run, entry: Entry) -> None:
        """Logs the round's numbers, at the rounds completed."""
        metric = importlib.import_module("mlflow.entities").Metric
        now = int(time.time() * 1000)
        found = [metric(name, value, now, run.done) for name, value in scalars(entry).items()]
        self._client.log_batch(self.run_id, metrics=found)

    def on_end(self, run: Run) -> None:
        """Ends their run."""
        if hasattr(self, "_client"):
            self._client.set_terminated(self.run_id, "FINISHED" if run.result else "KILLED")


def _needed(module: str, package: str, logger: type) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{logger.__name__} needs {package}: pip install {package} ({error})"
        ) from error
