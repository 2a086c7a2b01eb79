"""Privacy ledger of a run: what its rounds have spent, on disk before it is spent."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phalanx.errors import LedgerError
from phalanx.files import storing
from phalanx.privacy import Accountant, Budget
from phalanx.training.callbacks import Callback
from phalanx.training.run_record import Run

LEDGER = "privacy.jsonl"
"""Name of its file in a run folder."""


class PrivacyLedger(Callback):
    """Privacy ledger: charges every round before it is made, and stops before the budget is gone.

    A round is written to `privacy.jsonl`, and to the disk, before anything of it is computed. A run
    that was killed and goes on from its last checkpoint makes rounds a second time, with other
    noise: both count, so that it may end earlier than planned.

    Every line holds a digest of all before it, and checkpoints hold the last one, so that a ledger
    that was lost, cut short or changed is found out. Not so if somebody who knows how changes
    ledger and checkpoint together: then nothing short of a copy elsewhere helps.

    Args:
        accountant: that composes the rounds.
        budget: of the run.
        noise_multiplier: of a round.
        sampling_rate: of a round.
        resume: whether the run goes on, with its ledger.
    """

    def __init__(
        self,
        accountant: Accountant,
        budget: Budget,
        noise_multiplier: float,
        sampling_rate: float,
        *,
        resume: bool = False,
    ) -> None:
        self.accountant, self.budget, self._resume = accountant, budget, resume
        self.event = (noise_multiplier, sampling_rate)
        self.path: Path | None = None
        self._known: dict[str, Any] = {}  # of the checkpoint
        self._digest, self._num_lines = "", 0
        self._granted = 0  # rounds that are known to fit the budget

    def state_dict(self) -> dict[str, Any]:
        """How long the ledger is, and its digest."""
        return {"num_lines": self._num_lines, "digest": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """How long it was at the checkpoint, and its digest then."""
        self._known = dict(state)

    def on_start(self, run: Run) -> None:
        """Reads the ledger of a run that goes on.

        Raises:
            LedgerError: if it is missing, damaged, shorter than at the checkpoint, or another's; or
                if a run that is to be new finds one.
        """
        self.path = None if run.folder is None else run.folder / LEDGER
        if self.path is not None:
            self._read(self.path)
        rest = run.steps - run.done
        fits = rest > 0 and not self.accountant.would_exceed(self.budget, *self.event, rest)
        self._granted = rest if fits else 0

    def _read(self, path: Path) -> None:
        if not self._resume:
            if path.exists():
                raise LedgerError(f"{path} must not exist before a run begins: resume that run")
            return
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise LedgerError(f"the ledger {path} cannot be read: {error}") from error
        digests = [""]
        for number, line in enumerate(lines):
            digests.append(_digest(digests[-1], _content(path, number, line)))
            if json.loads(line)["digest"] != digests[-1] or not line.endswith("\n"):
                raise LedgerError(f"line {number + 1} of the ledger {path} is damaged")
        length = self._known.get("num_lines", 0)
        if length > len(lines) or digests[length] != self._known.get("digest", ""):
            raise LedgerError(
                f"the ledger {path} must hold the {length} lines that the checkpoint knows "
                f"of, got {len(lines)} lines, of which some are missing or others"
            )
        metrics = path.with_name("metrics.jsonl")
        rounds = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if rounds > len(lines):
            raise LedgerError(
                f"the ledger {path} must hold a line for each of the {rounds} rounds that "
                f"were made, got {len(lines)}"
            )
        for line in lines:
            found = json.loads(line)
            self.accountant.compose(found["noise_multiplier"], found["sampling_rate"])
        self._digest, self._num_lines = digests[-1], len(lines)

    def on_round_start(self, run: Run, step: int) -> None:
        """Charges the round, or stops the run."""
        if not self._granted and self.accountant.would_exceed(self.budget, *self.event):
            run.stop(
                f"another round would exceed the privacy budget of epsilon {self.budget.epsilon:g} "
                f"at delta {self.budget.delta:g}"
            )
            return
        self._granted = max(self._granted - 1, 0)
        noise_multiplier, sampling_rate = self.event
        content = {
            "round": step,
            "noise_multiplier": noise_multiplier,
            "sampling_rate": sampling_rate,
        }
        self._digest = _digest(self._digest, content)
        self._num_lines += 1
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({**content, "digest": self._digest}) + "\n"
            with storing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self.accountant.compose(*self.event)

    def on_finish(self, run: Run) -> None:
        """Says what was spent."""
        run.privacy = self.accountant.statement(self.budget.delta)


def _digest(before: str, content: Mapping[str, Any]) -> str:
    told = before + json.dumps(content, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _content(path: Path, number: int, line: str) -> dict[str, Any]:
    """What a line holds beside its digest."""
    names = {"round": int, "noise_multiplier": float, "sampling_rate": float, "digest": str}
    try:
        found = json.loads(line)
        if {name: type(value) for name, value in found.items()} != names:
            raise ValueError(f"it must hold {', '.join(names)}")
    except (ValueError, AttributeError) as error:
        raise LedgerError(f"line {number + 1} of the ledger {path} is damaged: {error}") from error
    return {name: value for name, value in found.items() if name != "digest"}
