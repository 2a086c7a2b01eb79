"""`phalanx report`: the HTML report of one run, or a comparison of several."""

from pathlib import Path

from phalanx.cli.console import console


def report(runs: list[Path], reference: Path | None = None, out: Path | None = None) -> None:
    """Redraws the report of a run, or lays several runs side by side.

    Example: phalanx report runs/a runs/b --reference runs/a

    Args:
        runs: Run folders.
        reference: The run whose weights the others are compared to; the first finished run without
            an attack if not given.
        out: Where to write the HTML; report.html in the run's folder, or comparison.html beside
            the first of several.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reporting import answer, compare_runs, load_run, terminal_table, write_report

    records = [load_run(folder) for folder in runs]
    against = load_run(reference) if reference is not None else None
    if against is not None and reference not in runs:
        records = [against, *records]
    if out is None:
        out = runs[0] / "report.html" if len(runs) == 1 else runs[0].parent / "comparison.html"
    rows = compare_runs(records, against)
    write_report(records, out, against)
    console.show(terminal_table(rows))
    console.print(answer(records, rows), markup=False)
    console.print(f"Report: {out}", soft_wrap=True)
