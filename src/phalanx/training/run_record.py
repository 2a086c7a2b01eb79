"""Training run as callbacks see it while it goes, and as `train` returns it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(repr=False)
class Run:
    """Training run: what callbacks are given while it goes, and what `phalanx.train` returns."""

    model: nn.Module
    """The model: the one that was given, trained in place."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    """One dictionary a round, as in `metrics.jsonl`."""

    result: dict[str, Any] = field(default_factory=dict)
    """The summary, as in `result.json`; empty while the run goes."""

    folder: Path | None = None
    """Where it is written, if anywhere."""

    title: str = ""
    """What reports call it."""

    steps: int = 0
    """Rounds that it is to have."""

    done: int = 0
    """Rounds that are completed, those before a resume included."""

    evaluated: tuple[str, ...] = ()
    """Names of the metrics that an evaluation measures, such as `test_loss`."""

    stopped_by: str | None = None
    """Why it ended before its last round, if a callback stopped it."""

    privacy: str | None = None
    """What a private run has spent, as a sentence, once it has ended."""

    def stop(self, reason: str) -> None:
        """Ends the run once this round is done, with everything written, as if it were the last.

        Args:
            reason: stands in the result as `stopped_by`, and in reports.
        """
        if self.stopped_by is None:
            self.stopped_by = reason

    def __repr__(self) -> str:
        """What it came to: rounds, last loss, evaluation, suspects with outliers, and folder."""
        parts = [f"steps={self.done}"]
        if self.rounds and (loss := self.rounds[-1]["loss"]) is not None:
            parts.append(f"loss={loss:.4g}")
        for name, value in self.result.get("evaluation", {}).items():
            parts.append(f"{name}={_shown(value)}")
        named: dict[int, int] = {}
        suspected = (entry["suspects"] + entry["outliers"] for entry in self.rounds)
        for worker in (worker for workers in suspected for worker in workers):
            named[worker] = named.get(worker, 0) + 1
        if named:
            most = sorted(named, key=lambda worker: (-named[worker], worker))
            shown = ", ".join(f"{worker}: {named[worker]}" for worker in most[:5])
            parts.append(f"rounds_suspected={{{shown}{', ...' if len(most) > 5 else ''}}}")
        ended = {name: self.result.get(name) for name in ("stopped", "stopped_by")}
        parts += [f"{name}={why!r}" for name, why in ended.items() if why]
        if self.folder is not None:
            parts.append(f"folder={str(self.folder)!r}")
        return f"Run({', '.join(parts)})"


def _shown(value: float | None) -> str:
    return "None" if value is None else f"{value:.4g}"
