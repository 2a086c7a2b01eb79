"""Run folders: configuration, metrics, checkpoints and weights on disk."""

import json
import math
import os
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from phalanx.files import clear_halves, whole

_KEPT = 2  # checkpoints: the newest, and one in case the disk failed under it


class RunFolder:
    """Run folder: environment, metrics, checkpoints, result and weights on disk.

    Files appear whole or not at all: each is written beside its place and moved there. Only
    `metrics.jsonl` grows in place, a line a round. Nothing is written before `open`.

    Args:
        path: the folder.
        resume: whether to go on with the run that the folder holds.

    Raises:
        ValueError: if the folder holds a run and `resume` is false, or holds none and it is true.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self._metrics = self.path / "metrics.jsonl"
        if self._metrics.exists() and not resume:
            raise ValueError(f"out must be a new folder, got {path}, which holds a run")
        if resume and not self.checkpoints():
            raise ValueError(f"resume needs the folder of a run, got {path}: no checkpoint in it")
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out must be a folder, got {path}, which is a file")

    def open(self) -> None:
        """Makes the folder, or clears what a run that ended or was killed left of its end."""
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.path / "checkpoints"):
            clear_halves(folder)
        (self.path / "result.json").unlink(missing_ok=True)  # true again only when the run ends

    def append(self, entry: dict[str, Any]) -> None:
        """Adds a line to the metrics; numbers that are not finite become null."""
        line = json.dumps({key: _finite(value) for key, value in entry.items()})
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate(self, step: int) -> list[dict[str, Any]]:
        """Drops the rounds from `step` on, and a torn last line; returns what is kept."""
        kept: list[dict[str, Any]] = []
        self._metrics.touch()
        for line in self._metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that a kill tore
            if entry["step"] < step:
                kept.append(entry)
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

    def checkpoints(self) -> list[Path]:
        """Paths of the checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"))

    def save_checkpoint(self, step: int, content: dict[str, Any]) -> None:
        """Saves what is needed to go on with round `step`; the older ones but one are removed."""
        if self._metrics.exists():  # a checkpoint must not outlive the rounds before it
            with self._metrics.open("rb") as file:
                os.fsync(file.fileno())
        with whole(self.path / "checkpoints" / f"step-{step:09d}.pt") as beside:
            torch.save({"step": step, **content}, beside)
        for old in self.checkpoints()[:-_KEPT]:
            old.unlink()

    def load_checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint that can be read; only tensors and plain values are unpickled.

        Raises:
            ValueError: if none can be read.
        """
        for path in reversed(self.checkpoints()):
            try:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, UnpicklingError) as error:
                warnings.warn(f"{path} cannot be read and is left out: {error}", stacklevel=2)
                continue
            return content
        raise ValueError(f"no checkpoint in {self.path} can be read")

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


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
