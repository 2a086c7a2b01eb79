"""HTML report of a feasibility study: verdict, convergence, what would help, and its limits."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from phalanx.files import whole
from phalanx.reporting.format import duration, percent
from phalanx.reporting.page import Plot, Table, drawn, render_page
from phalanx.reporting.plots import COLOURS, DASHES

if TYPE_CHECKING:
    from phalanx.readiness import Feasibility


def plot_convergence(found: "Feasibility") -> Plot:
    """The estimate under each transformation as training rows are added, and the allowed error."""
    ends = [f"{one.transformation} {percent(one.bayes_errors[-1])}" for one in found.curves]
    allowed = percent(1 - found.target_accuracy)
    return Plot(
        "Convergence",
        "Where a curve still falls, more rows would lower the estimate; one that ends early was "
        "given up.",
        f"Estimated best error over training rows. In the end: {', '.join(ends)}; {allowed} is "
        "allowed.",
        partial(_draw, found),
        (8.0, 4.0),
    )


def write_feasibility(path: Path, found: "Feasibility", data: str) -> None:
    """Writes the report of a study, as one file that loads nothing; whole or not at all.

    Args:
        path: where to.
        found: the answer.
        data: what was looked at, in words.
    """
    page = render_page(
        "phalanx.reporting",
        "feasibility.html.j2",
        title="Feasibility",
        kind="Phalanx readiness",
        answer=found.answer,
        origin="",
        advice=found.advice,
        findings=found.findings,
        facts={"data": data, "target accuracy": percent(found.target_accuracy)}
        | {"study": found.stopped},
        table=_table(found),
        plots=drawn([plot_convergence(found)]),
    )
    with whole(path) as beside:
        beside.write_text(page, encoding="utf-8")


def _table(found: "Feasibility") -> Table:
    rows = tuple(
        (
            one.transformation,
            one.dimension,
            one.sizes[-1],
            percent(one.errors[-1]),
            percent(one.bayes_errors[-1]),
            f"{percent(one.interval[0])} to {percent(one.interval[1])}",
            "yes" if one.exhausted else "no",
            duration(one.seconds),
        )
        for one in sorted(found.curves, key=lambda one: one.bayes_errors[-1])
    )
    headers = ("transformation", "features", "rows", "1NN error", "best error")
    caption = (
        "Best error: the 1NN error through the Cover-Hart map. The intervals hold together with "
        "95 %, given the training rows: they are about the test rows, not about the limit."
    )
    return Table("Transformations", caption, (*headers, "interval", "all rows?", "time"), rows)


def _draw(found: "Feasibility", axes: Axes) -> None:
    for number, one in enumerate(found.curves):
        axes.plot(
            one.sizes,
            [100 * error for error in one.bayes_errors],
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
            marker="." if len(one.sizes) == 1 else None,
            label=one.transformation,
        )
    allowed = 100 * (1 - found.target_accuracy)
    axes.axhline(allowed, color="#8C959F", linewidth=1.2, label="allowed by the target")
    axes.set(xlabel="training rows", ylabel="estimated best error (%)", ylim=(0, None))
    axes.legend(fontsize="small")
