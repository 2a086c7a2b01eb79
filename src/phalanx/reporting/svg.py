"""Inline SVG figures in the page's font and text colour."""

import re
import textwrap
import warnings
from collections.abc import Callable
from io import StringIO
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK = "#010203"  # stands for the page's text colour until the SVG is written
_LABEL = 60  # characters of a line in a legend: one column of them fits every figure
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#8C959F",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.borderaxespad": 0.2,
}


def inline_svg(
    draw: Callable[[Axes], None], *, name: str, alt: str, size: tuple[float, float]
) -> Markup:
    """Draws on fresh axes and gives the `<svg>` element.

    The same drawing gives the same bytes. A legend is moved above the axes, in as many columns as
    fit, and the figure grows by its height: it neither hides data nor squeezes the axes.

    Args:
        draw: draws on the axes.
        name: prefix of the ids within the SVG; unlike those of other figures on the page.
        alt: the text that stands for the picture where it cannot be seen.
        size: width and height in inches.
    """
    with rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        # a glyph that matplotlib's own font lacks is drawn by the browser's
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        _legend_above(figure, axes)
        written = StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg).replace(
        _INK, "currentColor"
    )
    label = escape(alt)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def _legend_above(figure: Figure, axes: Axes) -> None:
    """Moves the legend out of the axes, and makes the figure higher by what it takes."""
    found = axes.get_legend()
    if found is None:
        return
    labels = [textwrap.fill(text.get_text(), _LABEL) for text in found.get_texts()]
    handles = [one for one in found.legend_handles if one is not None]
    title = found.get_title().get_text() or None
    found.remove()
    for columns in range(len(labels), 0, -1):
        legend = figure.legend(
            handles, labels, title=title, loc="outside upper left", ncols=columns
        )
        extent = legend.get_window_extent()
        if columns == 1 or extent.width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
