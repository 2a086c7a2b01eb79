"""Callbacks of a training run: what is called at its start, rounds, evaluations and end."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from phalanx.checks import require_at_least, require_finite_at_least
from phalanx.training.run_record import Run

Entry = dict[str, Any]


class Callback:
    """Base of callbacks: methods that a run calls, all of them empty.

    Override those of use. They run in the server's process, between rounds, in the order of the
    list; what they raise ends the run, whose last checkpoint stays. `run.stop(reason)` in any of
    them ends the run once the round is done, with everything written. What must outlive a kill is
    handed out by `state_dict` and becomes part of the checkpoint.

    >>> import torch
    >>> from phalanx import train
    >>> from phalanx.training import Callback
    >>> class TargetLoss(Callback):
    ...     def on_round(self, run, entry):
    ...         if entry["loss"] < 0.2:
    ...             run.stop("the loss is below 0.2")
    >>> data = torch.utils.data.TensorDataset(torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8))
    >>> model = torch.nn.Linear(4, 4)
    >>> run = train(model, data, num_workers=2, batch_size=32, callbacks=[TargetLoss()])
    >>> run.result["stopped_by"], run.done < run.steps
    ('the loss is below 0.2', True)
    """

    def on_start(self, run: Run) -> None:
        """Before the first round, of a resumed run too; `run.done` rounds were completed before."""

    def on_round_start(self, run: Run, step: int) -> None:
        """Before every round; one that stops the run here keeps the round from being made."""

    def on_round(self, run: Run, entry: Entry) -> None:
        """After every round, with its metrics: a line of `metrics.jsonl`."""

    def on_evaluation(self, run: Run, entry: Entry) -> None:
        """After `on_round`, in rounds in which the model was evaluated."""

    def on_last_round(self, run: Run) -> None:
        """After the last round, before the result is measured: the model may still be changed."""

    def on_finish(self, run: Run) -> None:
        """Before the result is written, after the last round or another one that ended the run."""

    def on_end(self, run: Run) -> None:
        """When all is written, or after an error or an interruption: to close what was opened.

        `run.result` is empty after an interruption.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave; called before `on_start`, empty for a new run."""


@dataclass
class EarlyStopping(Callback):
    """Early stopping: ends a run whose metric has not improved for some evaluations.

    >>> from phalanx.training import EarlyStopping
    >>> EarlyStopping("validation_accuracy", patience=5, mode="max").patience
    5
    """

    monitor: str = "validation_loss"
    """The metric of an evaluation: `validation_loss`, `test_accuracy`, `validation_` and the name
    of one of `metrics`."""

    patience: int = 3
    """Evaluations in a row without an improvement after which the run is stopped."""

    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""

    min_delta: float = 0.0
    """What counts as an improvement must be better by more than this."""

    restore_best_weights: bool = True
    """Whether the model ends with its weights of the best evaluation, also where the run reaches
    its last round; else with the last ones. They are part of the checkpoint, which grows by the
    size of the model."""

    def __post_init__(self) -> None:
        require_at_least(1, patience=self.patience)
        require_finite_at_least(0, min_delta=self.min_delta)
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")
        self.load_state_dict({})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Best value and weights, and evaluations since."""
        self.best: float | None = state.get("best")
        """The best value so far; None before the first evaluation."""
        self.best_round: int | None = state.get("best_round")
        """Rounds completed when it was measured."""
        self.waited: int = state.get("waited", 0)
        """Evaluations since."""
        self._weights: dict[str, Tensor] = state.get("weights", {})

    def state_dict(self) -> dict[str, Any]:
        """Best value and weights, and evaluations since."""
        return {
            "best": self.best,
            "best_round": self.best_round,
            "waited": self.waited,
            "weights": self._weights,
        }

    def on_start(self, run: Run) -> None:
        """A run that was stopped stays so.

        Raises:
            ValueError: if the metric is not among those that the run measures.
        """
        if self.monitor not in run.evaluated:
            raise ValueError(
                f"monitor must be a metric of the evaluations, one of {list(run.evaluated)}, got "
                f"{self.monitor!r}"
            )
        self._stop_if_due(run)

    def on_evaluation(self, run: Run, entry: Entry) -> None:
        """Compares with the best so far."""
        value = entry[self.monitor]
        sign = 1 if self.mode == "min" else -1
        if value is None or not math.isfinite(value):
            better = False
        else:
            better = self.best is None or sign * value < sign * self.best - self.min_delta
        if better:
            self.best, self.best_round, self.waited = value, run.done, 0
            if self.restore_best_weights:
                trained = (one for one in run.model.named_parameters() if one[1].requires_grad)
                self._weights = {name: one.detach().clone() for name, one in trained}
        else:
            self.waited += 1
        self._stop_if_due(run)

    def on_last_round(self, run: Run) -> None:
        """Puts the best weights back."""
        with torch.no_grad():
            for name, value in self._weights.items():
                run.model.get_parameter(name).copy_(value)

    def _stop_if_due(self, run: Run) -> None:
        if self.waited >= self.patience:
            best = "" if self.best is None else f" on {self.best:.4g}"
            run.stop(
                f"EarlyStopping: {self.monitor} has not improved{best} in {self.waited} evaluations"
            )


@dataclass
class OnRound(Callback):
    """A function as a callback: `on_round` of `phalanx.train`."""

    function: Callable[[Entry], None]
    """Called after every round with its metrics."""

    def on_round(self, run: Run, entry: Entry) -> None:
        """Calls it."""
        self.function(entry)


class Callbacks(Callback):
    """Several callbacks as one, called in order; all of them are closed in the end.

    Args:
        callbacks: which.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)
        self._started: list[Callback] = []

    def on_start(self, run: Run) -> None:
        """Starts them; those after one that fails are not started."""
        for one in self.callbacks:
            self._started.append(one)
            one.on_start(run)

    def on_round_start(self, run: Run, step: int) -> None:
        """Tells all of them."""
        for one in self.callbacks:
            one.on_round_start(run, step)

    def on_round(self, run: Run, entry: Entry) -> None:
        """Tells all of them."""
        for one in self.callbacks:
            one.on_round(run, entry)

    def on_evaluation(self, run: Run, entry: Entry) -> None:
        """Tells all of them."""
        for one in self.callbacks:
            one.on_evaluation(run, entry)

    def on_last_round(self, run: Run) -> None:
        """Tells all of them."""
        for one in self.callbacks:
            one.on_last_round(run)

    def on_finish(self, run: Run) -> None:
        """Tells all of them."""
        for one in self.callbacks:
            one.on_finish(run)

    def on_end(self, run: Run) -> None:
        """Ends those that were started, the last first, even if one of them fails."""
        if self._started:
            try:
                self._started.pop().on_end(run)
            finally:
                self.on_end(run)

    def state_dict(self) -> dict[str, Any]:
        """Of all, by name and place."""
        return {name: one.state_dict() for name, one in self._named().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hands them out; what was not there before begins anew."""
        for name, one in self._named().items():
            one.load_state_dict(state.get(name, {}))

    def _named(self) -> dict[str, Callback]:
        """By their class and how many of it came before, so that others may be added on resume."""
        named: dict[str, Callback] = {}
        for one in self.callbacks:
            kind = type(one).__name__
            count = sum(type(other) is type(one) for other in named.values())
            named[f"{kind} {count}"] = one
        return named
