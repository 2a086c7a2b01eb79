"""`phalanx reproduce`: a paper's claims beside what is measured here."""

from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from phalanx.cli.console import complaints, console
from phalanx.cli.train import default_out
from phalanx.errors import FolderInUseError, PhalanxError


def reproduce(
    recipe: str,
    size: Literal["quick", "default", "full"] = "default",
    data: Path | None = None,
    jobs: int | None = None,
    out: Path | None = None,
    publish: Path | None = None,
) -> None:
    """Runs a paper's experiment and lays its claims beside what is measured here.

    Every part is kept in the folder when it is done: the same command with the same `--out` goes on
    where a reproduction was stopped or killed.

    Example: phalanx reproduce draco --size quick

    Args:
        recipe: The paper's method, such as `draco`; all are listed below. `--all`
            runs every one of them, one after the other, and ends with one page.
        size: Quick takes about a minute a recipe, on data that need no download; default is what is
            published; full has the papers' sizes, and is meant for a GPU.
        data: Folder of data; if not given, what the environment variable PHALANX_DATA names. What
            is missing there is named before anything runs.
        jobs: Processes, of one thread each; as many as there are processors if not given. What is
            timed runs alone.
        out: Folder for the findings; a new one under runs/ if not given.
        publish: Folder that gets a page and a JSON file for each recipe as well.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reproduce import reproduce as run
    from phalanx.reproduce import reproduce_all

    folder = out or default_out().with_name("reproduce-" + default_out().name)
    failed = list[str]()
    try:
        with console.status("starting") as status:
            options: dict[str, Any] = {"size": size, "data": data, "jobs": jobs, "publish": publish}
            if recipe == "all":
                failed = reproduce_all(folder, progress=status.update, **options)
            else:
                done = run(recipe, folder, progress=status.update, **options)
    except FolderInUseError:
        raise
    except (KeyboardInterrupt, PhalanxError):
        complaints.print(f"Go on with the same command and --out {folder}", soft_wrap=True)
        raise
    if recipe == "all":
        console.print(f"Overview: {folder / 'overview.md'}", soft_wrap=True)
        if failed:
            raise PhalanxError(f"{len(failed)} could not be run: {'; '.join(failed)}")
        return
    table = Table(title=done.recipe.paper, title_justify="left", show_lines=True)
    for header in ("claim", "the paper's figure", "ours", "same?"):
        table.add_column(header)
    for found in done.findings.claims:
        table.add_row(found.text, found.paper, found.ours, found.same)
    console.print(table)
    console.print(done.findings.answer)
    console.print(f"Findings: {done.folder / 'findings.html'}", soft_wrap=True)


def _recipes() -> str:
    # Imported where it is used: see `reproduce`.
    from phalanx.reproduce import recipes

    width = max(map(len, recipes()))
    lines = [f"  {name:<{width}}  {recipe.paper}" for name, recipe in recipes().items()]
    return "\n".join(["recipes:", *(one if len(one) < 80 else f"{one[:76]}..." for one in lines)])


# Listed by `--help`.
reproduce.more_help = _recipes  # type: ignore[attr-defined]
