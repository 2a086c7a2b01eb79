"""Runs a recipe and writes what it found: for programs, for editors and for readers."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phalanx.reporting import drawn, markdown_table, render_page
from phalanx.reproduce.base import Findings, Progress, Recipe
from phalanx.training.environment import environment

_DATA = "PHALANX_DATA"
_COLUMNS = ("claim", "the paper's figure", "ours", "same?")


@dataclass(frozen=True)
class Reproduction:
    """A recipe's findings, and where they are written."""

    recipe: Recipe
    """What was run."""
    findings: Findings
    """What came out."""
    folder: Path
    """Holds `findings.json`, `findings.md`, `findings.html`, and what the recipe left."""


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
) -> Reproduction:
    """Runs a paper's experiment and writes its claims beside what was measured.

    Args:
        recipe: the name of a recipe, see `recipes`; or a recipe of other sizes.
        out: a folder; the findings go to a folder in it that is named like the recipe, which must
            not hold findings yet.
        full: more rounds, data and repeats: up to an hour instead of minutes.
        data: where the recipe's data lies; by default what the environment variable `PHALANX_DATA`
            says, and else the recipe falls back to data that needs no download.
        progress: called with a few words whenever something new is being measured.

    Returns:
        The findings and the folder that they are written to.

    Raises:
        ValueError: if there is no such recipe, or the folder holds findings.
        FileNotFoundError: if `data` is not there.
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
    folder.mkdir(parents=True, exist_ok=True)
    told = _silent if progress is None else progress
    findings = recipe.measure(folder, full=full, data=place, progress=told)
    done = Reproduction(recipe, findings, folder)
    facts = environment(seed=0)
    (folder / "findings.html").write_text(_html(done, facts), encoding="utf-8")
    (folder / "findings.md").write_text(_markdown(done, facts), encoding="utf-8")
    (folder / "findings.json").write_text(_json(done, facts), encoding="utf-8")
    return done


def _silent(message: str) -> None:
    """Tells nobody."""


def _json(done: Reproduction, facts: dict[str, Any]) -> str:
    content = asdict(
        Findings(
            done.findings.answer,
            done.findings.findings,
            done.findings.tables,
            (),
            done.findings.notes,
            done.findings.settings,
        )
    )
    del content["plots"]
    whole = {"recipe": done.recipe.name, "paper": done.recipe.paper, **content}
    return json.dumps(whole | {"environment": facts}, indent=1, ensure_ascii=False) + "\n"


def _markdown(done: Reproduction, facts: dict[str, Any]) -> str:
    found = done.findings
    lines = [f"# {done.recipe.name}", "", done.recipe.paper, "", f"**{found.answer}**", ""]
    rows = [(one.claim, one.paper, one.ours, one.same) for one in found.findings]
    lines += markdown_table(_COLUMNS, rows)
    for table in found.tables:
        lines += [f"## {table.title}", "", table.caption, ""]
        lines += markdown_table(table.headers, table.rows)
    lines += [f"- {note}" for note in found.notes]
    lines += ["", *markdown_table(("what", "value"), list((found.settings | facts).items()))]
    return "\n".join(lines)


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
