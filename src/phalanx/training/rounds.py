"""Rounds of a run, kept in a run folder: begun, told, written down, and gone on with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from phalanx.errors import TooManyByzantineError, WorkerError
from phalanx.training.callbacks import Callbacks
from phalanx.training.checkpoint import Checkpoint, reading
from phalanx.training.composition import Composition, require_same
from phalanx.training.environment import environment
from phalanx.training.interruption import graceful
from phalanx.training.run_folder import RunFolder
from phalanx.training.run_record import Run


class Rounds(ABC):
    """Rounds of a run, and what is written of them; what a round does is for who derives from it.

    Args:
        model: of the run.
        seed: of the run.
        callbacks: who is told.
        folder: where it is written, if anywhere.
        title: what reports call the run.
        config: text that is kept as `config.yaml`.
        evaluated: names of what an evaluation measures.
    """

    def __init__(
        self,
        model: nn.Module,
        seed: int,
        callbacks: Callbacks,
        folder: RunFolder | None,
        title: str,
        config: str | None,
        evaluated: tuple[str, ...] = (),
    ) -> None:
        self.callbacks, self.folder, self.config = callbacks, folder, config
        path = folder.path if folder is not None else None
        self.run = Run(model, folder=path, title=title, evaluated=evaluated)
        self.composition: Composition = {}
        self._seed = seed
        self._first = 0  # the round that begins this part of the run
        self._open = False

    @abstractmethod
    def round(self, session: Any, step: int, *, evaluate: bool) -> None:
        """One round.

        Args:
            session: of the workers, or what holds several.
            step: which round.
            evaluate: whether it ends with an evaluation.
        """

    @abstractmethod
    def finish(self, rounds: int, stopped: str | None = None) -> Run:
        """Writes the result down and hands the run over."""

    @abstractmethod
    def _saved(self, step: int) -> Checkpoint:
        """All that round `step` and those after it depend on."""

    @abstractmethod
    def _restore(self, saved: Checkpoint, changes: Collection[str]) -> None:
        """Takes over what `_saved` gave."""

    def start(self, steps: int) -> None:
        """Tells the callbacks that the run begins, or goes on, and has so many rounds."""
        self.run.steps, self.run.done = steps, self._first
        if not self._first:
            self.callbacks.load_state_dict({})
        self.callbacks.on_start(self.run)

    def begin(self, session: Any) -> None:  # noqa: B027 - most have nothing to do
        """Called once workers run."""

    def tell(self, entry: dict[str, Any], *, evaluated: bool) -> None:
        """Hands the metrics of a round to the folder and the callbacks."""
        self.run.rounds.append(entry)
        self.run.done = entry["step"] + 1
        if self.folder is not None:
            self.folder.append(entry)
        self.callbacks.on_round(self.run, entry)
        if evaluated:
            self.callbacks.on_evaluation(self.run, entry)

    def open(self) -> None:
        """Begins to write: before the first step of the optimizer, so that it can be repeated."""
        if self.folder is None or self._open:
            return
        self._open = True
        self.folder.open()
        if self.config is not None:
            self.folder.write_text("config.yaml", self.config)
        if not self.folder.holds_json("env.json"):
            self.folder.write_json(
                "env.json", environment(self.composition.get("seed", self._seed))
            )
        if not self.folder.checkpoints():
            self._save(0)
        self.folder.write_json("run.json", dict(self.composition))
        self.run.rounds[:] = self.folder.truncate(self._first)

    def checkpoint(self, session: Any, step: int) -> None:
        """Writes down all that round `step` and those after it depend on."""
        self.open()
        self._save(step)

    def _save(self, step: int) -> None:
        if self.folder is not None:
            self.folder.save_checkpoint(self._saved(step))

    def restore(self, changes: Collection[str] = ()) -> int:
        """Goes back to the last checkpoint; returns the round to go on with. Writes nothing.

        Args:
            changes: names of what is meant to differ from the run, see `BY_INTENT`.

        Raises:
            CheckpointError: if no checkpoint is whole.
            ValueError: if the run is made of something else.
        """
        assert self.folder is not None
        saved = self.folder.load_checkpoint()
        require_same(saved.composition, self.composition, changes)
        with reading(self.folder.path):
            self._restore(saved, changes)
        self._first = saved.step
        return self._first


def go_on(
    kept: Rounds,
    sessions: Callable[[], AbstractContextManager[Any]],
    rounds: range,
    evaluate_every: int,
    checkpoint_every: int,
) -> Run:
    """The rounds that are left, until the last, or until a callback, an error or a signal.

    Args:
        kept: the run.
        sessions: starts its workers.
        rounds: those that are left.
        evaluate_every: rounds between evaluations.
        checkpoint_every: rounds between checkpoints.
    """
    run, steps = kept.run, rounds.stop
    try:
        kept.start(steps)
        with sessions() as session, graceful() as interrupted:
            kept.begin(session)
            for number in rounds:
                if run.stopped_by is not None:
                    break
                kept.callbacks.on_round_start(run, number)
                if run.stopped_by is not None:
                    kept.checkpoint(session, number)
                    break
                last = number + 1 == steps
                due = last or (number + 1) % evaluate_every == 0
                try:
                    kept.round(session, number, evaluate=due)
                except (TooManyByzantineError, WorkerError) as error:
                    kept.checkpoint(session, number)
                    kept.finish(number, stopped=str(error))
                    error.add_note(f"stopped in round {number}; the weights before it are kept")
                    raise
                last = last or run.stopped_by is not None
                if last or interrupted() or (number + 1) % checkpoint_every == 0:
                    kept.checkpoint(session, number + 1)
                if interrupted() and not last:
                    written = "; a checkpoint is written" if kept.folder is not None else ""
                    raise KeyboardInterrupt(
                        f"stopped after {number + 1} of {steps} rounds{written}"
                    )
        return kept.finish(run.done)
    finally:
        kept.callbacks.on_end(run)


def total(rounds: list[dict[str, Any]], name: str) -> float | int | None:
    """The sum of a figure of all rounds; None if a round has none."""
    found: list[float | int] = [entry[name] for entry in rounds if entry.get(name) is not None]
    known = found and len(found) == len(rounds) == rounds[-1]["step"] + 1  # none is lost
    return sum(found) if known else None
