"""Runs recipes and writes what they found: for programs, for editors and for readers."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from phalanx.errors import PhalanxError
from phalanx.experiments import Cell, Progress, Records, measure
from phalanx.files import owned, whole
from phalanx.identity import digest
from phalanx.reporting import drawn, markdown_table, render_page
from phalanx.reproduce.base import SIZES, Findings, Recipe, Scope, Size
from phalanx.training.environment import environment

_DATA = "PHALANX_DATA"
_KEYS = ("claim", "paper", "ours", "same")
_COLUMNS = ("claim", "the paper's figure", "ours", "same?")
Told = Callable[[str], None]
"""Is told in a few words what is being measured now."""


@dataclass(frozen=True)
class Reproduction:
    """A recipe's findings, and where they are written."""

    recipe: Recipe
    """What was run."""
    findings: Findings
    """What came out."""
    folder: Path
    """Holds `findings.json`, `findings.md`, `findings.html`, and the cells' records."""
    facts: Mapping[str, Any]
    """Size, settings, minutes, machine, versions and commit, by section."""


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
    size: Size = "default",
    data: Path | str | None = None,
    progress: Told | None = None,
    jobs: int | None = None,
    publish: Path | str | None = None,
) -> Reproduction:
    """Runs a paper's experiment and writes its claims beside what was measured.

    Every cell of the experiment is kept when it is done: the same call goes on with a reproduction
    that was stopped or killed.

    Args:
        recipe: the name of a recipe, see `recipes`; or a recipe of other sizes.
        out: a folder; the findings go to a folder in it that is named like the recipe, which must
            not hold findings yet.
        size: `"quick"` takes about a minute, on data that need no download; `"default"` is what is
            published; `"full"` has the paper's sizes, and is meant for a GPU.
        data: where the recipe's data lie; by default what the environment variable `PHALANX_DATA`
            says.
        progress: called with a few words whenever something new is being measured.
        jobs: processes; as many as there are processors if not given. What is timed runs alone, in
            this process, whatever is given.
        publish: a folder that gets `<recipe>.json` and `<recipe>.md` as well.

    Returns:
        The findings and the folder that they are written to.

    Raises:
        ValueError: if there is no such recipe or size, the folder holds findings, or data that this
            size takes are missing.
        FolderInUseError: if another process reproduces the recipe there.
        FileNotFoundError: if `data` is not there.
        PhalanxError: if a cell failed; the others are kept, and it is tried again next time.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    recipe = (_known(recipe) if isinstance(recipe, str) else recipe).at(size)
    folder = Path(out) / recipe.name
    if (folder / "findings.json").exists():
        raise ValueError(f"out must be a new folder, got {out}, where {folder.name} holds findings")
    scope, runner = Scope(size, _place(data)), _Runner(folder, jobs, progress)
    recipe.cells(scope)  # what is missing is said before anything is written
    with owned(folder):
        findings = recipe.findings(recipe.measure(scope, runner), scope)
        done = Reproduction(recipe, findings, folder, _about(recipe, scope, runner))
        _write(done, folder, "findings")
    if publish is not None:
        _write(done, Path(publish), recipe.name)
    return done


def _known(name: str) -> Recipe:
    known = recipes()
    if name not in known:
        raise ValueError(f"recipe must be one of {', '.join(known)}, got {name!r}")
    return known[name]()


def _place(data: Path | str | None) -> Path | None:
    given = data if data is not None else os.environ.get(_DATA)
    place = Path(given) if given else None
    if place is not None and not place.exists():
        raise FileNotFoundError(f"data must be a file or folder that is there, got {place}")
    return place


def reproduce_all(out: Path | str, *, progress: Told | None = None, **options: Any) -> list[str]:
    """Reproduces every paper, one after the other, and writes `overview.md` about all of them.

    The same call goes on where it was stopped or killed; what cannot be run is left out.

    Args:
        out: a folder, see `reproduce`.
        progress: see `reproduce`; each message begins with the recipe's name.
        options: others of `reproduce`.

    Returns:
        What could not be run, and why.
    """
    failed, folder = list[str](), Path(out)
    for name in recipes():
        if (folder / name / "findings.json").exists():
            continue

        def tell(message: str, name: str = name) -> None:
            if progress is not None:
                progress(f"{name}: {message}")

        tell("starting")
        try:
            reproduce(name, folder, progress=tell, **options)
        except (ValueError, PhalanxError) as error:  # the others go on
            failed.append(f"{name}: {error}")
    found = [folder / name / "findings.json" for name in recipes()]
    folder.mkdir(parents=True, exist_ok=True)
    write_overview([one for one in found if one.exists()], folder / "overview.md", failed)
    return failed


def grid_digest(recipe: Recipe, scope: Scope) -> str:
    """A hash of the experiment: of all that its cells are called with, wherever the data lie."""
    told = json.dumps([cell.config for cell in recipe.cells(scope)], sort_keys=True)
    return digest(told.replace(json.dumps(str(scope.data))[1:-1] + "/", ""))


@dataclass(frozen=True)
class _Runner:
    """Measures into the folder of a reproduction; no record of it failed."""

    folder: Path
    jobs: int | None
    progress: Told | None
    cells: list[Cell] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, cells: Sequence[Cell]) -> Records:
        self.cells.extend(cells)
        found = measure(cells, self.folder, jobs=self.jobs, watch=self._watch)
        failed = [one for one in found if one.status == "failed"]
        if failed:
            first = f"{', '.join(map(str, failed[0].labels.values()))}: {failed[0].reason}"
            raise PhalanxError(f"{len(failed)} of {len(found)} cells failed, first {first}")
        taken = zip(cells, found, strict=True)
        self.seconds.update((cell.identity, one.seconds or 0.0) for cell, one in taken)
        return found

    def _watch(self, now: Progress) -> None:
        if now.running and self.progress is not None:
            self.progress(f"{now.done} of {now.total} done; measuring: {now.running[-1]}")


def _about(recipe: Recipe, scope: Scope, runner: _Runner) -> dict[str, Any]:
    facts = environment(seed=0)
    del facts["seed"]  # of the cells, if they have any
    return {
        "size": scope.size,
        "fields": settings(recipe, []),
        "settings": settings(recipe, runner.cells),
        "grid": grid_digest(recipe, scope),
        "minutes": round(sum(runner.seconds.values()) / 60, 1),
        "environment": facts,
    }


def _write(done: Reproduction, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if folder == done.folder:
        (folder / f"{name}.html").write_text(_html(done), encoding="utf-8")
    (folder / f"{name}.md").write_text(_markdown(done), encoding="utf-8")
    with whole(folder / f"{name}.json") as beside:
        beside.write_text(_json(done), encoding="utf-8")


def settings(recipe: Recipe, cells: Sequence[Cell]) -> dict[str, Any]:
    """The recipe's fields, and the numbers and names that its cells are called with."""
    found: dict[str, list[Any]] = {}
    own = ((one.name, getattr(recipe, one.name)) for one in fields(recipe))
    for name, value in chain(own, *(cell.arguments.items() for cell in cells)):
        told = value if isinstance(value, str | int | float) else str(value)
        if (told is value or hasattr(recipe, name)) and value is not None:
            found[name] = [*found.get(name, []), *([] if told in found.get(name, []) else [told])]
    return {name: v[0] if len(v) == 1 else ", ".join(map(str, v)) for name, v in found.items()}


def _json(done: Reproduction) -> str:
    found = done.findings
    whole = {
        "recipe": done.recipe.name,
        "paper": done.recipe.paper,
        "answer": found.answer,
        "findings": [dict(zip(_KEYS, row, strict=True)) for row in _rows(found)],
        "tables": [asdict(table) for table in found.tables],
        "notes": found.notes,
        **done.facts,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _flat(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    told = {"reproduction": facts["size"], "minutes": facts["minutes"]}
    return {**told, **facts["settings"], **facts["environment"]}


def _markdown(done: Reproduction) -> str:
    found = done.findings
    lines = [f"# {done.recipe.name}", "", done.recipe.paper, "", f"**{found.answer}**", ""]
    lines += markdown_table(_COLUMNS, _rows(found))
    for table in found.tables:
        lines += [f"## {table.title}", "", table.caption, ""]
        lines += markdown_table(table.headers, table.rows)
    lines += [f"- {note}" for note in found.notes]
    lines += ["", *markdown_table(("what", "value"), list(_flat(done.facts).items()))]
    return "\n".join(lines)


def _rows(found: Findings) -> list[tuple[str, str, str, str]]:
    return [(one.text, one.paper, one.ours, one.same) for one in found.claims]


def _html(done: Reproduction) -> str:
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
        facts=_flat(done.facts),
    )


def write_overview(found: Iterable[Path], page: Path, failed: Sequence[str] = ()) -> None:
    """Writes one page about the findings in some files: a table of claims for each paper."""
    lines = []
    for one in (json.loads(path.read_text(encoding="utf-8")) for path in found):
        about = one["environment"]
        lines += [f"### {one['recipe']}: {_counted(one)}", "", one["paper"], "", one["answer"], ""]
        lines += markdown_table(_COLUMNS, [[row[key] for key in _KEYS] for row in one["findings"]])
        lines += [
            f"Size {one['size']}, {one['minutes']} minutes on {about['num_cpus']} "
            f"processors, {about['started'][:10]}, commit {str(about['commit'])[:12]}.",
            "",
        ]
    lines += [f"- Not run: {one}" for one in failed]
    page.write_text("\n".join(lines), encoding="utf-8")


def headlines(published: Path) -> str:
    """A Markdown table of recipes' first claims, whether they hold, and how all of them came out.

    Args:
        published: the folder that `reproduce` published to; recipes without findings there are
            named below the table.
    """
    rows, missing = [], []
    for name in recipes():
        path = published / f"{name}.json"
        if not path.is_file():
            missing.append(name)
            continue
        one = json.loads(path.read_text(encoding="utf-8"))
        first, link = one["findings"][0], f"[{name}]({published.name}/{name}.md)"
        rows.append((link, first["claim"], first["same"], _counted(one)))
    columns = ("paper", "its first claim", "holds here", "all its claims")
    lines = markdown_table(columns, rows)
    return "\n".join([*lines, f"Not measured yet: {', '.join(missing)}."] if missing else lines)


def _counted(found: Mapping[str, Any]) -> str:
    """How often each verdict was given, such as `2 yes, 1 no`."""
    verdicts = [row["same"] for row in found["findings"]]
    return ", ".join(f"{verdicts.count(v)} {v}" for v in ("yes", "partly", "no") if v in verdicts)
