"""`phalanx reproduce`: a paper's claims beside what is measured here."""

from pathlib import Path

from rich.table import Table

from phalanx.cli.console import complaints, console
from phalanx.cli.train import default_out
from phalanx.errors import PhalanxError


def reproduce(
    recipe: str,
    full: bool = False,
    data: Path | None = None,
    jobs: int | None = None,
    out: Path | None = None,
) -> None:
    """Runs a paper's experiment and lays its claims beside what is measured here.

    Every part is kept in the folder when it is done: the same command with the same `--out` goes on
    where a reproduction was stopped or killed.

    Example: phalanx reproduce draco --data mnist.npz

    Args:
        recipe: The paper's method, such as `draco`; all are listed below.
        full: More rounds, data and repeats; minutes become up to an hour.
        data: The recipe's data; if not given, what the environment variable PHALANX_DATA names, or
            else data that needs no download.
        jobs: Processes, of one thread each; as many as there are processors if not given. What is
            timed runs alone.
        out: Folder for the findings; a new one under runs/ if not given.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reproduce import reproduce as run

    folder = out or default_out().with_name("reproduce-" + default_out().name)
    try:
        with console.status("starting") as status:
            done = run(recipe, folder, full=full, data=data, progress=status.update, jobs=jobs)
    except (KeyboardInterrupt, PhalanxError):
        complaints.print(f"Go on with the same command and --out {folder}", soft_wrap=True)
        raise
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
