"""Run folders: configuration, metrics, checkpoints and weights on disk."""

import json
import math
import os
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, cast

import torch
from safetensors.torch import save
from torch import Tensor

from phalanx.errors import CheckpointError
from phalanx.files import (
    Sealing,
    clear_halves,
    require_folder,
    require_sealed,
    storing,
    whole,
)
from phalanx.training.checkpoint import Checkpoint

_KEPT = 2  # checkpoints: the newest, and one in case the disk failed under it
_DAMAGED = ".damaged"  # what is found broken is put aside under this name
_BROKEN = (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, LookupError, TypeError)


class RunFolder:
    """Run folder: environment, metrics, checkpoints, result and weights on disk.

    Files appear whole or not at all: each is written beside its place and moved there. Only
    `metrics.jsonl` grows in place, a line a round. Nothing is written before `open`. Whoever writes
    owns the folder, see `phalanx.files.owned`.

    Args:
        path: the folder.
        resume: whether to go on with the run that the folder holds.

    Raises:
        ValueError: if the folder holds a run and `resume` is false, or holds none and it is true.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self._metrics = self.path / "metrics.jsonl"
        self._damaged: list[Path] = []
        if not resume and (self._metrics.exists() or self.checkpoints()):
            raise ValueError(f"out must be a new folder, got {path}, which holds a run")
        if resume and not self.checkpoints():
            raise ValueError(f"resume needs the folder of a run, got {path}: no checkpoint in it")
        require_folder(self.path)
        if self._metrics.exists() and not self._metrics.is_file():
            raise ValueError(f"{self._metrics} must be a file")

    def open(self) -> None:
        """Makes the folder, or clears what a run that ended or was killed left of its end."""
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.path / "checkpoints"):
            clear_halves(folder)
        for path in self._damaged:
            path.replace(path.with_name(path.name + _DAMAGED))
        self._damaged = []
        (self.path / "result.json").unlink(missing_ok=True)  # true again only when the run ends

    def append(self, entry: dict[str, Any]) -> None:
        """Adds a line to the metrics; numbers that are not finite become null."""
        line = json.dumps({key: _finite(value) for key, value in entry.items()})
        with storing(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate(self, step: int) -> list[dict[str, Any]]:
        """Drops the rounds from `step` on, and what is no round; returns what is kept.

        Warns if that is not every round before `step`, and then keeps the file as it was under
        another name.
        """
        text = ""
        if self._metrics.exists():
            text = self._metrics.read_text(encoding="utf-8", errors="replace")
        found = {entry["step"]: entry for line in text.split("\n") for entry in _entries(line)}
        kept = [found[number] for number in sorted(found) if number < step]
        if lost := sorted({*range(step)} - {*found}):
            aside = self._metrics.with_name(self._metrics.name + _DAMAGED)
            if text:
                self._metrics.replace(aside)
            warnings.warn(
                f"{self._metrics} is damaged: the metrics of {len(lost)} rounds, first {lost[0]}, "
                f"are lost; the run itself is not"
                + (f" (the file is kept as {aside.name})" if text else ""),
                stacklevel=2,
            )
        self.write_text(self._metrics.name, "".join(json.dumps(entry) + "\n" for entry in kept))
        return kept

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of text."""
        with whole(self.path / name) as beside:
            beside.write_text(text, encoding="utf-8")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a JSON file."""
        text = json.dumps({key: _finite(value) for key, value in content.items()}, indent=2)
        self.write_text(name, text + "\n")

    def holds_json(self, name: str) -> bool:
        """Whether a JSON file is there, and whole."""
        try:
            return isinstance(json.loads((self.path / name).read_bytes()), dict)
        except (OSError, ValueError, RecursionError):
            return False

    def checkpoints(self) -> list[Path]:
        """Paths of the checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Saves what is needed to go on, with its digest; the older ones but one are removed."""
        if self._metrics.exists():  # a checkpoint must not outlive the rounds before it
            with storing(self._metrics), self._metrics.open("rb") as file:
                os.fsync(file.fileno())
        path = self.path / "checkpoints" / f"step-{checkpoint.step:09d}.pt"
        with whole(path) as beside, beside.open("wb") as file:
            sealing = Sealing(file)
            try:
                torch.save(checkpoint.content(), cast(BinaryIO, sealing))
            except RuntimeError as error:  # in which torch hides what the disk says
                raise sealing.error or error from error
            sealing.seal()
        for old in self.checkpoints()[:-_KEPT]:
            old.unlink()

    def load_checkpoint(self) -> Checkpoint:
        """The newest whole checkpoint; only tensors and plain values are unpickled.

        Warns of newer ones that are damaged: their bytes are not those that were written, or they
        hold something else.

        Raises:
            CheckpointError: if none is whole.
        """
        told = []
        for path in reversed(self.checkpoints()):
            try:
                require_sealed(path)
                content = torch.load(path, map_location="cpu", weights_only=True)
                found = Checkpoint.read(content)
            except _BROKEN as error:
                told.append(f"{path}: {next(iter(str(error).splitlines()), type(error).__name__)}")
                self._damaged.append(path)
                continue
            for one in told:
                warnings.warn(
                    f"damaged checkpoint: {one}; the run goes on from {path.name}", stacklevel=2
                )
            return found
        raise CheckpointError(f"no checkpoint of {self.path} is whole: {'; '.join(told)}")

    def save_model(self, tensors: dict[str, Tensor]) -> None:
        """Writes the final weights and buffers as safetensors."""
        # Copies, since safetensors refuses tensors that share memory, as tied weights do; by
        # `save`, since `save_file` makes files that only their owner may read.
        copies = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        }
        with whole(self.path / "model.safetensors") as beside:
            beside.write_bytes(save(copies))


def _entries(line: str) -> list[dict[str, Any]]:
    """The round that a line of metrics tells of; none if it is torn, or something else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return []
    whole_round = isinstance(entry, dict) and type(entry.get("step")) is int and "loss" in entry
    return [entry] if whole_round else []


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
