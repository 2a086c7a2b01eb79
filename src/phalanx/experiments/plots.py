"""Plots of records: lines, and a table as a heat map."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from phalanx.reporting import Plot
from phalanx.reporting.format import listed
from phalanx.reporting.plots import COLOURS, DASHES

_SHADES = matplotlib.colormaps["cividis"]  # the same to colour-blind eyes, and in grey
_NOTHING = "#9aa3ab"
_Number = float | int
_Lines = Mapping[str, tuple[Sequence[_Number | None], Sequence[_Number | None]]]
_Points = Sequence[tuple[_Number, _Number]]


def line_plot(
    title: str,
    caption: str,
    lines: _Lines,
    x: str,
    y: str,
    log: Literal["", "x", "y", "xy"] = "",
) -> Plot:
    """Lines through points; the text that stands for the picture says where each ends.

    Args:
        title: what it shows.
        caption: how to read it.
        lines: by label, places on both axes, equally many; points with a None are left out.
        x: what the horizontal axis shows.
        y: what the vertical axis shows.
        log: the axes that are logarithmic.
    """
    known = {label: _measured(*line) for label, line in lines.items()}
    ends = [f"{label} {points[-1][1]:.4g}" for label, points in known.items() if points]
    alt = f"{title}: {y} over {x}. In the end: {listed(ends)}."
    return Plot(title, caption, alt, partial(_draw_lines, known, x, y, log))


def _measured(xs: Sequence[_Number | None], ys: Sequence[_Number | None]) -> _Points:
    pairs = zip(xs, ys, strict=True)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _draw_lines(lines: Mapping[str, _Points], x: str, y: str, log: str, axes: Axes) -> None:
    for number, (label, points) in enumerate(lines.items()):
        axes.plot(
            [place for place, _ in points],
            [height for _, height in points],
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
            label=label,
        )
    if not any(lines.values()):  # an axis without points has no logarithm
        log = ""
    axes.set(
        xlabel=x,
        ylabel=y,
        xscale="log" if "x" in log else "linear",
        yscale="log" if "y" in log else "linear",
    )
    if lines:
        axes.legend(fontsize="small")


def heat_map(
    title: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[_Number | None]],
    texts: Sequence[Sequence[str]],
) -> Plot:
    """Cells coloured by value, the first row on top, with a text in each.

    Args:
        title: what it shows.
        caption: how to read it.
        rows: their names.
        columns: their names.
        values: shares in [0, 1]; None is drawn hatched.
        texts: what stands in the cells.
    """
    said = []
    for row, line in zip(rows, texts, strict=True):
        pairs = [f"{column} {text}" for column, text in zip(columns, line, strict=True)]
        said.append(f"{row}: {listed(pairs)}.")
    longest = [max(map(len, names)) for names in (rows, columns)]  # letters, 0.08 inches
    size = (
        0.6 + 0.08 * longest[0] + 0.95 * len(columns),
        0.6 + 0.05 * longest[1] + 0.42 * len(rows),
    )
    draw = partial(_draw_heat_map, rows, columns, values, texts)
    return Plot(title, caption, f"Heat map of {title}. {' '.join(said)}", draw, size)


def _draw_heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[_Number | None]],
    texts: Sequence[Sequence[str]],
    axes: Axes,
) -> None:
    known = [value for line in values for value in line if value is not None]
    norm = Normalize(min(known, default=0.0), max([*known, min(known, default=0.0) + 0.01]))
    for y, (line, words) in enumerate(zip(values, texts, strict=True)):
        for x, (value, text) in enumerate(zip(line, words, strict=True)):
            colour = (0.0, 0.0, 0.0, 0.0) if value is None else _SHADES(norm(value))
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
