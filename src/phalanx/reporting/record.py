"""Run records, read from run folders."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunRecord:
    """Record of a run, finished or not, as its folder holds it."""

    folder: Path
    """The run folder, as it was given."""
    title: str
    """The run's title; the folder's name while the run has written no result."""
    config: str | None
    """The text of `config.yaml`; None if the run was not started from the command line."""
    environment: dict[str, Any]
    """Versions, machine, commit and seed from `env.json`; empty if there is none."""
    rounds: list[dict[str, Any]]
    """One dictionary a completed round from `metrics.jsonl`, in order of `step`."""
    result: dict[str, Any] | None
    """`result.json`; None if the run is not finished."""
    class_counts: list[list[int]] = field(default_factory=list)
    """Samples of every class at every client, from `partition.json`; empty if there is none."""

    @property
    def is_federated(self) -> bool:
        """Whether clients took part in turns."""
        return any("clients" in entry for entry in self.rounds)

    @property
    def status(self) -> str:
        """`"finished"`, `"stopped"` (by an error) or `"unfinished"` (running still, or killed)."""
        if self.result is None:
            return "unfinished"
        return "stopped" if self.result.get("stopped") else "finished"

    @property
    def error(self) -> str | None:
        """The message of the error that stopped the run."""
        return str(self.result["stopped"]) if self.result and self.result.get("stopped") else None

    @property
    def test_accuracy(self) -> float | None:
        """The final test accuracy, a share in [0, 1]; while unfinished, the one last measured."""
        return self._measured("test_accuracy")

    @property
    def test_loss(self) -> float | None:
        """The final mean loss on the test set; while unfinished, the one last measured."""
        return self._measured("test_loss")

    def _measured(self, name: str) -> float | None:
        if self.result is not None and self.result.get(name) is not None:
            return float(self.result[name])
        measured = self.series(name)
        return measured[-1][1] if measured else None

    @property
    def stopped_by(self) -> str | None:
        """Which callback ended the run before its last round, and why."""
        why = None if self.result is None else self.result.get("stopped_by")
        return None if why is None else str(why)

    @property
    def evaluation(self) -> dict[str, float]:
        """Final evaluation by name, such as `test_loss`; while unfinished, what was measured last.

        Accuracies first, then metrics of the user's, then losses.
        """
        found = (self.result or {}).get("evaluation") or {
            name: points[-1][1] for name in self._evaluated() if (points := self.series(name))
        }
        order = {"accuracy": 0, "loss": 2}
        names = sorted(found, key=lambda name: order.get(name.partition("_")[2], 1))
        return {name: float(found[name]) for name in names if found[name] is not None}

    def _evaluated(self) -> list[str]:
        names = (name for entry in self.rounds for name in entry)
        return list(dict.fromkeys(one for one in names if one.startswith(("test_", "validation_"))))

    @property
    def num_workers(self) -> int:
        """How many workers the run had; as many as its rounds mention while it is unfinished."""
        if self.result is not None and self.result.get("num_workers") is not None:
            return int(self.result["num_workers"])
        return 1 + max((max(worker_ids(entry), default=-1) for entry in self.rounds), default=-1)

    def series(self, name: str) -> list[tuple[int, float]]:
        """Pairs of (rounds completed, value) of a metric, where it was measured and is finite."""
        return [
            (entry["step"] + 1, float(entry[name]))
            for entry in self.rounds
            if entry.get(name) is not None
        ]


def byzantine(entry: dict[str, Any]) -> set[int]:
    """Byzantine workers of a round, as the simulated attack chose them."""
    return set(entry.get("byzantine") or ())


def suspects(entry: dict[str, Any]) -> set[int]:
    """The workers that the decoder named in a round: Byzantine for certain, within the bound."""
    return set(entry.get("suspects") or ())


def suspected(entry: dict[str, Any]) -> set[int]:
    """The workers that the decoder named in a round, or suspected without proof (outliers)."""
    return suspects(entry) | set(entry.get("outliers") or ())


def missing(entry: dict[str, Any]) -> dict[int, str]:
    """Why a message never entered decoding in a round, by worker."""
    return {int(worker): str(why) for worker, why in (entry.get("missing") or {}).items()}


def excluded(record: RunRecord) -> dict[int, int]:
    """After how many rounds each worker was excluded; those that were not are left out."""
    since: dict[int, int] = {}
    for entry in record.rounds:
        for worker in entry.get("excluded") or ():
            since.setdefault(int(worker), entry["step"] + 1)
    return since


def excluded_by_suspicion(record: RunRecord) -> set[int]:
    """The workers excluded without proof: outliers in the round that excluded them."""
    since = excluded(record)
    return {
        worker
        for entry in record.rounds
        for worker in suspected(entry) - suspects(entry)
        if since.get(worker) == entry["step"] + 1
    }


def worker_ids(entry: dict[str, Any]) -> set[int]:
    """All workers that a round mentions."""
    return byzantine(entry) | suspected(entry) | set(missing(entry))


def load_run(folder: Path) -> RunRecord:
    """Reads a run folder.

    Only `metrics.jsonl` must be there; it may be empty. A last line torn by a kill is ignored, a
    step that stands twice (after a resume) counts as it was written last, and numbers that are not
    finite are read as not measured.

    Raises:
        ValueError: if the folder or its metrics are missing, or a file in it is not what it should
            be; the message names the folder and the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no run folder: there is no such directory")
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} is no run folder: metrics.jsonl is missing")
    result = _read_json(folder, "result.json")
    config = folder / "config.yaml"
    title = " ".join(str((result or {}).get("title") or folder.resolve().name).split())
    return RunRecord(
        folder=folder,
        title=title,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None,
        environment=_read_json(folder, "env.json") or {},
        rounds=_read_rounds(folder),
        result=result,
        class_counts=(_read_json(folder, "partition.json") or {}).get("class_counts") or [],
    )


_KINDS: dict[str, type] = {"byzantine": list, "suspects": list, "excluded": list, "missing": dict}


def _read_rounds(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.split("\n") if line.strip("\0 \t\r")]
    by_step: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = _parse(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{folder}: metrics.jsonl is broken in line {number}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ValueError(f"{folder}: metrics.jsonl has no step in line {number}")
        for name, kind in _KINDS.items():
            if not isinstance(entry.get(name), kind | None):
                raise ValueError(f"{folder}: metrics.jsonl has no list {name} in line {number}")
        by_step[entry["step"]] = entry
    return [by_step[step] for step in sorted(by_step)]


def _read_json(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / name
    if not path.is_file():
        return None
    try:
        content = _parse(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder}: {name} is no JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{folder}: {name} holds no JSON object")
    return content


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
