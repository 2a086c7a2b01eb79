"""Run folders of federations whose server is no `Loop`: matched averaging, prototypes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phalanx.checks import require_at_least
from phalanx.docstrings import source
from phalanx.files import owned
from phalanx.training import Callback, Run
from phalanx.training.callbacks import Callbacks, OnRound
from phalanx.training.interruption import terminable
from phalanx.training.progress import ProgressBar, shown
from phalanx.training.rounds import Rounds, go_on, total
from phalanx.training.run import check_resume
from phalanx.training.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class Keeping:
    """Where a run is kept and who is told, as in `federate`."""

    out: Path | str | None
    """The run folder; nothing is written if None."""
    resume: bool
    """Whether to go on with the run in it."""
    checkpoint_every: int
    """Rounds between checkpoints."""
    callbacks: Sequence[Callback]
    """What is called at the start, at rounds and the end."""
    on_round: Callable[[dict[str, Any]], None] | None
    """Called after every round."""
    progress: bool | None
    """Whether progress is shown."""

    def run(
        self,
        make: Callable[[Callbacks, RunFolder | None], Rounds],
        sessions: Callable[[], AbstractContextManager[Any]],
        rounds: int,
    ) -> Run:
        """Begins the run, or goes on with it, to its last round.

        Args:
            make: the run, given who is told and the folder.
            sessions: starts its workers.
            rounds: in all.

        Raises:
            ValueError: if arguments do not fit, or the run in the folder is made of something else.
        """
        require_at_least(1, rounds=rounds, checkpoint_every=self.checkpoint_every)
        check_resume(self.out, self.resume, ())
        path = None if self.out is None else Path(self.out)
        told = [*([ProgressBar()] if shown(self.progress) else []), *self.callbacks]
        if self.on_round is not None:
            told.append(OnRound(self.on_round))
        with terminable(), owned(path) if path is not None else nullcontext():
            folder = None if path is None else RunFolder(path, resume=self.resume)
            kept = make(Callbacks(told), folder)
            first = kept.restore() if self.resume else 0
            if first > rounds:
                raise ValueError(
                    f"rounds must be at least the {first} rounds that are done, got {rounds}"
                )
            return go_on(kept, sessions, range(first, rounds), 1, self.checkpoint_every)


class ServerRounds(Rounds):
    """Rounds of a server that trains models of its own; its result is written here."""

    def summary(self) -> Mapping[str, Any]:
        """What the result says besides what all say; the papers of `parts` are cited."""
        return {}

    def finish(self, rounds: int, stopped: str | None = None) -> Run:
        """Writes the result down and hands the run over."""
        self.open()
        run = self.run
        last = run.rounds[-1] if run.rounds else {}
        names = ("test_accuracy", "test_loss")
        found = dict(self.summary())
        result = {
            "title": run.title,
            "rounds": rounds,
            **{name: last.get(name) for name in names},
            "evaluation": {name: last[name] for name in names if last.get(name) is not None},
            "num_parameters": sum(one.numel() for one in run.model.parameters()),
            "message_bytes": total(run.rounds, "message_bytes"),
            "broadcast_bytes": total(run.rounds, "broadcast_bytes"),
            "stopped": stopped,
            "stopped_by": run.stopped_by,
            "methods": [text for one in found.pop("parts", ()) if (text := source(type(one)))],
            **found,
        }
        if self.folder is not None:
            self.folder.save_model(run.model.state_dict())
            self.folder.write_json("result.json", result)
        run.result = result
        return run
