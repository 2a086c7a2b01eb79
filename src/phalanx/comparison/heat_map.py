"""A table as a picture: rows, columns, and a colour for every cell."""

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

_COLOURS = matplotlib.colormaps["cividis"]  # the same to colour-blind eyes, and in grey
_NOTHING = "#9aa3ab"


def plot_heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    axes: Axes,
) -> None:
    """Draws cells coloured by value, the first row on top, with a text in each.

    Args:
        rows: their names.
        columns: their names.
        values: shares in [0, 1]; None is drawn hatched.
        texts: what stands in the cells.
        axes: what to draw on.
    """
    known = [value for line in values for value in line if value is not None]
    norm = Normalize(min(known, default=0.0), max([*known, min(known, default=0.0) + 0.01]))
    for y, (line, words) in enumerate(zip(values, texts, strict=True)):
        for x, (value, text) in enumerate(zip(line, words, strict=True)):
            colour = (0.0, 0.0, 0.0, 0.0) if value is None else _COLOURS(norm(value))
            hatch = "///" if value is None else None
            box = Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=_NOTHING, lw=0.6, hatch=hatch)
            axes.add_patch(box)
            ink = None if value is None else _readable(colour)  # None: as all text of the page
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8.5, color=ink)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, rotation=25, ha="right")
    axes.set_yticks([y + 0.5 for y in range(len(rows))], rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _readable(colour: tuple[float, float, float, float]) -> str:
    """Black on light colours, white on dark ones, by relative luminance."""
    linear = [
        one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in colour[:3]
    ]
    luminance = math.fsum(w * one for w, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if luminance > 0.179 else "#ffffff"
