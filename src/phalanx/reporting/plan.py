"""HTML report of a plan: the advice, the candidates, and their plot."""

from pathlib import Path

from phalanx.files import whole
from phalanx.reporting.page import Plot, Table, drawn, render_page


def write_plan(path: Path, title: str, answer: str, table: Table, plot: Plot) -> None:
    """Writes the report of a plan, as one file that loads nothing; whole or not at all.

    Args:
        path: the HTML file, in a folder that is there.
        title: what was planned.
        answer: the advice, in a sentence.
        table: the candidates.
        plot: a picture of them.
    """
    page = render_page(
        "phalanx.reporting",
        "plan.html.j2",
        title=title,
        kind="Phalanx plan",
        answer=answer,
        origin="",
        table=table,
        plots=drawn([plot]),
    )
    with whole(path) as beside:
        beside.write_text(page, encoding="utf-8")
