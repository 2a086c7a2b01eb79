"""Finished cells on disk, one file each: a kill at any moment loses what was running, no more."""

import json
from pathlib import Path
from typing import Any

from phalanx.comparison.cell import Cell
from phalanx.comparison.grid import Place
from phalanx.comparison.outcome import Outcome
from phalanx.experiments.labels import slug
from phalanx.files import clear_halves, whole


class CellFolder:
    """The cells of one or more grids: `cells/<method>_<attack>_<split>_seed<n>-<hash>.json`.

    A cell is found by the hash of its resolved configuration, whatever grid asks for it. Nothing is
    written before `open`.

    Args:
        path: the folder of the comparison.

    Raises:
        ValueError: if it is a file.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"out must be a folder, got {path}, which is a file")
        self.path = path / "cells"

    def open(self, config: str | None) -> None:
        """Makes the folder, removes half files that a kill left, and keeps how to repeat it all."""
        self.path.mkdir(parents=True, exist_ok=True)
        clear_halves(self.path)
        if config is not None:
            with whole(self.path.parent / "config.yaml") as beside:
                beside.write_text(config, encoding="utf-8")

    def load(self) -> dict[str, Outcome]:
        """The settled outcomes by identity; failed cells are left out, so that they run again."""
        found = {}
        for file in sorted(self.path.glob("*.json")):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                outcome = Outcome.from_json(content["outcome"])
                identity = str(content["identity"])
            except (ValueError, KeyError, TypeError):
                continue  # none of ours, or from another version: it is measured anew
            if outcome.settled:
                found[identity] = outcome
        return found

    def put(self, place: Place, cell: Cell, outcome: Outcome, environment: dict[str, Any]) -> None:
        """Writes a cell's file, whole."""
        content = {
            "identity": cell.identity,
            "place": place._asdict(),
            "outcome": outcome.to_json(),
            "config": cell.config,
            "environment": environment,
        }
        names = (slug(place.method), slug(place.attack), slug(place.split), f"seed{place.seed}")
        name = "_".join(names)[:120] + f"-{cell.identity}.json"
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        with whole(self.path / name) as beside:
            beside.write_text(text + "\n", encoding="utf-8")
