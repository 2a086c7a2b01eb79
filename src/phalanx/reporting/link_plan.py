"""Compression on slow links: seconds per step over bandwidths."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from phalanx.communication import Link
from phalanx.planning.compressor_planner import CompressorOutlook
from phalanx.reporting.plots import COLOURS, DASHES
from phalanx.reporting.svg import inline_svg

_DECADES = 2.0  # of bandwidth to either side of the link


def plot_link_plan(plan: Sequence[CompressorOutlook], link: Link, ax: Axes) -> None:
    """One line a compressor, and the link itself; both axes are logarithmic.

    Args:
        plan: the outlooks.
        link: the one that they were made for.
        ax: where to draw.
    """
    rates = link.rate * np.logspace(-_DECADES, _DECADES, 81)
    for place, one in enumerate(sorted(plan, key=lambda one: one.compressor)):
        dense = one.compressor == "none"
        ax.plot(
            rates / 1e6,
            [one.at(replace(link, rate=float(each))) for each in rates],
            label="not compressed" if dense else one.compressor,
            color="#8C959F" if dense else COLOURS[place % len(COLOURS)],
            linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
            linewidth=2.5 if dense else 1.2,
        )
    ax.axvline(link.rate / 1e6, color="#8C959F", linestyle="dotted")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("bandwidth of each worker's link (Mbit/s, log scale)")
    ax.set_ylabel("predicted time per step (s, log scale)")
    ax.legend(fontsize="x-small")


def write_link_plan(plan: Sequence[CompressorOutlook], link: Link, path: Path) -> None:
    """Draws the plan as an SVG file; the dotted line is the link."""
    alt = "Predicted time per step over the bandwidth of the link, one line per compressor"
    draw = partial(plot_link_plan, plan, link)
    drawn = inline_svg(draw, name="link-plan", alt=alt, size=(7.0, 4.5))
    path.write_text(str(drawn) + "\n", encoding="utf-8")
