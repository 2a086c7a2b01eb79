"""Runs a recipe and writes what it found: for programs, for editors and for readers."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from phalanx.errors import PhalanxError
from phalanx.experiments import Cell, Records, measure
from phalanx.experiments import Progress as Watched
from phalanx.files import owned, whole
from phalanx.reporting import drawn, markdown_table, render_page
from phalanx.reproduce.base import Findings, Progress, Recipe, Scope
from phalanx.training.environment import environment

_DATA = "PHALANX_DATA"
_KEYS = ("claim", "paper", "ours", "same")
_COLUMNS = ("claim", "the paper's figure", "ours", "same?")


@dataclass(frozen=True)
class Reproduction:
    """A recipe's findings, and where they are written."""

    recipe: Recipe
    """What was run."""
    findings: Findings
    """What came out."""
    folder: Path
    """Holds `findings.json`, `findings.md`, `findings.html`, and the cells' records."""


def recipes() -> dict[str, type[Recipe]]:
    """Every recipe by its name.

    >>> from phalanx.reproduce import recipes
    >>> print(recipes()["draco"].paper.partition(",")[0])
    Chen
    """
    return {one.name: one for one in sorted(Recipe.__subclasses__(), key=lambda one: one.name)}


def reproduce(
    recipe: str | Recipe = "draco",
    out: Path | str = "runs/reproduce",
    *,
    full: bool = False,
    data: Path | str | None = None,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> Reproduction:
    """Runs a paper's experiment and writes its claims beside what was measured.

    Every cell of the experiment is kept when it is done: the same call goes on with a reproduction
    that was stopped or killed.

    Args:
        recipe: the name of a recipe, see `recipes`; or a recipe of other sizes.
        out: a folder; the findings go to a folder in it that is named like the recipe, which must
            not hold findings yet.
        full: more rounds, data and repeats: up to an hour instead of minutes.
        data: where the recipe's data lies; by default what the environment variable `PHALANX_DATA`
            says, and else the recipe falls back to data that needs no download.
        progress: called with a few words whenever something new is being measured.
        jobs: processes; as many as there are processors if not given. What is timed runs alone, in
            this process, whatever is given.

    Returns:
        The findings and the folder that they are written to.

    Raises:
        ValueError: if there is no such recipe, or the folder holds findings.
        FolderInUseError: if another process reproduces the recipe there.
        FileNotFoundError: if `data` is not there.
        PhalanxError: if a cell failed; the others are kept, and it is tried again next time.
    """
    if isinstance(recipe, str):
        known = recipes()
        if recipe not in known:
            raise ValueError(f"recipe must be one of {', '.join(known)}, got {recipe!r}")
        recipe = known[recipe]()
    folder = Path(out) / recipe.name
    if (folder / "findings.json").exists():
        raise ValueError(f"out must be a new folder, got {out}, where {folder.name} holds findings")
    given = data if data is not None else os.environ.get(_DATA)
    place = Path(given) if given else None
    if place is not None and not place.exists():
        raise FileNotFoundError(f"data must be a file or folder that is there, got {place}")
    with owned(folder):
        scope, runner = Scope(full, place), _Runner(folder, jobs, progress)
        findings = recipe.findings(recipe.measure(scope, runner), scope)
        settings = {"full": full, **_sizes(recipe, runner.cells), **findings.settings}
        done = Reproduction(recipe, replace(findings, settings=settings), folder)
        facts = environment(seed=0)
        del facts["seed"]  # of the cells, if they have any
        for kind, write in (("html", _html), ("md", _markdown), ("json", _json)):
            with whole(folder / f"findings.{kind}") as beside:
                beside.write_text(write(done, facts), encoding="utf-8")
    return done


@dataclass(frozen=True)
class _Runner:
    """Measures into the folder of a reproduction; no record of it failed."""

    folder: Path
    jobs: int | None
    progress: Progress | None
    cells: list[Cell] = field(default_factory=list)

    def __call__(self, cells: Sequence[Cell], *, jobs: int | None = None) -> Records:
        self.cells.extend(cells)
        found = measure(cells, self.folder, jobs=jobs or self.jobs, watch=self._watch)
        failed = [one for one in found if one.status == "failed"]
        if failed:
            first = f"{', '.join(map(str, failed[0].labels.values()))}: {failed[0].reason}"
            error = PhalanxError(f"{len(failed)} of {len(found)} cells failed, first {first}")
            error.add_note(failed[0].traceback or "")
            raise error
        return found

    def _watch(self, now: Watched) -> None:
        if now.running and self.progress is not None:
            self.progress(f"{now.done} of {now.total} done; measuring: {now.running[-1]}")


def _sizes(recipe: Recipe, cells: Sequence[Cell]) -> dict[str, Any]:
    """The recipe's fields, and the numbers and names that its cells are called with."""
    found: dict[str, list[Any]] = {}
    own = ((one.name, getattr(recipe, one.name)) for one in fields(recipe))
    for name, value in chain(own, *(cell.arguments.items() for cell in cells)):
        told = value if isinstance(value, str | int | float) else str(value)
        if (told is value or hasattr(recipe, name)) and value is not None:
            found[name] = [*found.get(name, []), *([] if told in found.get(name, []) else [told])]
    return {name: v[0] if len(v) == 1 else ", ".join(map(str, v)) for name, v in found.items()}


def _json(done: Reproduction, facts: dict[str, Any]) -> str:
    found = done.findings
    whole = {
        "recipe": done.recipe.name,
        "paper": done.recipe.paper,
        "answer": found.answer,
        "findings": [dict(zip(_KEYS, row, strict=True)) for row in _rows(found)],
        "tables": [asdict(table) for table in found.tables],
        "notes": found.notes,
        "settings": found.settings,
        "environment": facts,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _markdown(done: Reproduction, facts: dict[str, Any]) -> str:
    found = done.findings
    lines = [f"# {done.recipe.name}", "", done.recipe.paper, "", f"**{found.answer}**", ""]
    lines += markdown_table(_COLUMNS, _rows(found))
    for table in found.tables:
        lines += [f"## {table.title}", "", table.caption, ""]
        lines += markdown_table(table.headers, table.rows)
    lines += [f"- {note}" for note in found.notes]
    lines += ["", *markdown_table(("what", "value"), list((found.settings | facts).items()))]
    return "\n".join(lines)


def _rows(found: Findings) -> list[tuple[str, str, str, str]]:
    return [(one.text, one.paper, one.ours, one.same) for one in found.claims]


def _html(done: Reproduction, facts: dict[str, Any]) -> str:
    return render_page(
        "phalanx.reproduce",
        "findings.html.j2",
        title=f"Reproduce {done.recipe.name}",
        kind="Phalanx reproduces",
        answer=done.findings.answer,
        origin="",
        paper=done.recipe.paper,
        found=done.findings,
        columns=_COLUMNS,
        plots=drawn(done.findings.plots),
        facts=done.findings.settings | facts,
    )
