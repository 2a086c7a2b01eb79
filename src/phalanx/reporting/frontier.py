"""Redundancy frontier under stragglers: seconds per round against the gradient's error."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from phalanx.planning.code_planner import CodeOutlook
from phalanx.reporting.plots import COLOURS
from phalanx.reporting.svg import inline_svg

_MARKERS = "osD^v"


def plot_frontier(plan: Sequence[CodeOutlook], ax: Axes) -> None:
    """One mark a candidate of a plan; a line joins those that no other beats in both respects."""
    names = sorted({one.code for one in plan})
    for place, name in enumerate(names):
        own = [one for one in plan if one.code == name]
        ax.plot(
            [one.round_s for one in own],
            [one.error for one in own],
            linestyle="none",
            marker=_MARKERS[place % len(_MARKERS)],
            color=COLOURS[place % len(COLOURS)],
            label="no code" if name == "none" else name,
        )
    best = frontier(plan)
    ax.plot([one.round_s for one in best], [one.error for one in best], color="#8C959F", zorder=1)
    ax.set_xlabel("mean time per round (s)")
    ax.set_ylabel("error of the gradient (relative, root mean square)")
    ax.legend()


def frontier(plan: Sequence[CodeOutlook]) -> list[CodeOutlook]:
    """The candidates of which no quicker one has as small an error, the quickest first."""
    best: list[CodeOutlook] = []
    for one in sorted(plan, key=lambda one: (one.round_s, one.error)):
        if not best or one.error < best[-1].error:
            best.append(one)
    return best


def write_frontier(plan: Sequence[CodeOutlook], path: Path) -> None:
    """Draws the frontier as an SVG file."""
    alt = "Error of the gradient against the mean time per round, one mark per candidate"
    drawn = inline_svg(partial(plot_frontier, plan), name="frontier", alt=alt, size=(7.0, 4.5))
    path.write_text(str(drawn) + "\n", encoding="utf-8")
