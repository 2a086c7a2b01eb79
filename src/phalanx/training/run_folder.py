"""What a run leaves on disk, written so that a kill at any moment loses at most a few rounds' time."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_KEPT = 2  # checkpoints: the newest, and one in case the disk failed under it


class RunFolder:
    """A folder with `env.json`, `metrics.jsonl`, `checkpoints/`, `result.json`, `model.safetensors`.

    Files appear whole or not at all: each is written beside its place and moved there. Only
    `metrics.jsonl` grows in place, a line a round.

    Args:
        path: the folder; made if it is missing.
        resume: whether to go on with the run that the folder holds.

    Raises:
        ValueError: if the folder holds a run and `resume` is false, or holds none and it is true.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self._metrics = self.path / "metrics.jsonl"
        if self._metrics.exists() and not resume:
            raise ValueError(f"out must be a new folder, got {path}, which holds a run; resume it")
        if resume and not self.checkpoints():
            raise ValueError(f"resume must name the folder of a run, got {path}: no checkpoint")
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._metrics.touch()
        (self.path / "result.json").unlink(missing_ok=True)  # true again only when the run ends

    def append(self, entry: dict[str, Any]) -> None:
        """Adds a line to the metrics; numbers that are not finite become null."""
        line = json.dumps({key: _finite(value) for key, value in entry.items()})
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate(self, step: int) -> list[dict[str, Any]]:
        """Drops the metrics of rounds from `step` on, and a torn last line; returns what is kept."""
        kept = []
        for line in self._metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that a kill tore
            if entry["step"] < step:
                kept.append(entry)
        with _whole(self._metrics) as beside:
            text = "".join(json.dumps(entry) + "\n" for entry in kept)
            beside.write_text(text, encoding="utf-8")
        return kept

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a JSON file."""
        with _whole(self.path / name) as beside:
            text = json.dumps({key: _finite(value) for key, value in content.items()}, indent=2)
            beside.write_text(text + "\n", encoding="utf-8")

    def checkpoints(self) -> list[Path]:
        """Paths of the checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"))

    def save_checkpoint(self, step: int, content: dict[str, Any]) -> None:
        """Saves what is needed to go on with round `step`; the older ones but one are removed."""
        with _whole(self.path / "checkpoints" / f"step-{step:09d}.pt") as beside:
            torch.save({"step": step, **content}, beside)
        for old in self.checkpoints()[:-_KEPT]:
            old.unlink()

    def load_checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint; nothing but tensors and plain values is unpickled."""
        content: dict[str, Any] = torch.load(
            self.checkpoints()[-1], map_location="cpu", weights_only=True
        )
        return content

    def save_model(self, tensors: dict[str, Tensor]) -> None:
        """Writes the final weights and buffers as safetensors."""
        with _whole(self.path / "model.safetensors") as beside:
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, beside
            )


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to, which then takes the place of `path` at once, and on the disk."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
