"""Report of a run that a command makes: written when it ends, printed if it ends well."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from phalanx.cli.console import console
from phalanx.errors import PhalanxError


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Writes `report.html` after the run of a folder, also of one that was stopped half-way."""
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reporting import answer, compare_runs, load_run, terminal_table, write_report

    try:
        yield
    except ValueError:  # nothing was begun
        raise
    except BaseException:
        if (folder / "metrics.jsonl").exists():
            with suppress(ValueError, OSError, PhalanxError):  # what ended the run is told
                write_report([load_run(folder)], folder / "report.html")
        raise
    records = [load_run(folder)]
    write_report(records, folder / "report.html")
    rows = compare_runs(records)
    console.show(terminal_table(rows))
    console.print(answer(records, rows), markup=False)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
