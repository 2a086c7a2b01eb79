"""Plots of a report: each draws one figure on given axes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from phalanx.reporting.compare_runs import Row
from phalanx.reporting.record import (
    RunRecord,
    byzantine,
    excluded,
    missing,
    suspected,
    suspects,
    worker_ids,
)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colour-blind safe (Okabe and Ito, 2008), and readable on white and on near-black."""
DASHES = ("solid", (0, (5, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))

WORKER_STATES = (
    ("honest", "#8C959F30"),
    ("message missing", "#E69F00"),
    ("bad and named", "#0072B2"),
    ("bad, not named", "#D55E00"),
    ("honest, yet named", "#CC79A7"),
    ("bad and suspected", "#56B4E9"),
    ("honest, yet suspected", "#F0DCE8"),
)
"""What a worker can be in a round, with its colour; missing covers Byzantine and honest workers.
Named is who was Byzantine for certain, suspected who was an outlier only."""


def plot_accuracy(records: Sequence[RunRecord], ax: Axes) -> None:
    """Test accuracy over rounds, one line per run."""
    _lines(records, ax, "test_accuracy", marker="o")
    ax.set_ylabel("test accuracy (%)")
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=""))


def plot_metric(records: Sequence[RunRecord], name: str, ax: Axes) -> None:
    """A metric of evaluations over rounds, one line per run."""
    _lines(records, ax, name, marker="o")
    ax.set_ylabel(name.replace("_", " "))


def plot_loss(records: Sequence[RunRecord], ax: Axes) -> None:
    """Training loss over rounds, one line per run, on a logarithmic axis.

    The axis ends where a run that diverged would flatten the others; the legend says how high it
    went.
    """
    top = _top([[y for _, y in record.series("loss")] for record in records])
    _lines(records, ax, "loss", positive=True, top=top)
    ax.set_ylabel("training loss (log scale)")
    ax.set_yscale("log")
    if math.isfinite(top):
        ax.set_ylim(top=top)


def _top(series: Sequence[Sequence[float]]) -> float:
    """Where the axis ends: ten times what runs begin with, and what the calmest run reaches.

    Infinite if no run goes a good deal beyond that.
    """
    drawn = [values for values in series if values]
    if not drawn:
        return math.inf
    peaks = [max(values) for values in drawn]
    top = 10 * max(min(peaks), *(values[0] for values in drawn))
    return top if 0 < 10 * top < max(peaks) else math.inf


def plot_residual(records: Sequence[RunRecord], ax: Axes) -> None:
    """Relative disagreement among trusted messages over rounds, on a logarithmic axis.

    Rounds that agree to the bit have no place on that axis; the legend counts them.
    """
    _lines(records, ax, "residual", positive=True)
    ax.set_ylabel("relative residual (log scale)")
    ax.set_yscale("log")


def plot_workers(record: RunRecord, ax: Axes) -> None:
    """Who was Byzantine, named or missing: one row per worker, one column per round."""
    grid = worker_states(record)
    colours = ListedColormap([colour for _, colour in WORKER_STATES])
    first, last = record.rounds[0]["step"] + 0.5, record.rounds[-1]["step"] + 1.5
    ax.imshow(
        grid,
        cmap=colours,
        vmin=-0.5,
        vmax=len(WORKER_STATES) - 0.5,
        aspect="auto",
        interpolation="none",
        extent=(first, last, len(grid) - 0.5, -0.5),
    )
    _label_workers(ax)
    shown = sorted({int(state) for state in np.unique(grid)} | {0})
    handles = [Patch(facecolor=WORKER_STATES[i][1], label=WORKER_STATES[i][0]) for i in shown]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(shown))


def _label_workers(ax: Axes) -> None:
    ax.set_xlabel("round")
    ax.set_ylabel("worker")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    ax.grid(False)


def worker_states(record: RunRecord) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Indices into `WORKER_STATES`, `(workers, steps)` int8; steps without a record are honest."""
    first = record.rounds[0]["step"]
    mentioned = [worker for entry in record.rounds for worker in worker_ids(entry)]
    num_workers = max(record.num_workers, 1, *(worker + 1 for worker in mentioned))
    grid = np.zeros((num_workers, record.rounds[-1]["step"] - first + 1), dtype=np.int8)
    for entry in record.rounds:
        column = grid[:, entry["step"] - first]
        named, bad = suspects(entry), byzantine(entry)
        doubted = suspected(entry) - named
        column[list(bad & named)] = 2
        column[list(bad - named)] = 3
        column[list(named - bad)] = 4
        column[list(bad & doubted)] = 5
        column[list(doubted - bad)] = 6
        column[list(missing(entry))] = 1
    return grid


def plot_suspicion(record: RunRecord, ax: Axes) -> None:
    """How suspicious every worker is: one row per worker, one column per round, darker is more.

    A mark stands where a worker was excluded.
    """
    rounds = [entry for entry in record.rounds if entry.get("suspicion")]
    grid = np.array([entry["suspicion"] for entry in rounds]).T
    first, last = rounds[0]["step"] + 0.5, rounds[-1]["step"] + 1.5
    shades = LinearSegmentedColormap.from_list("suspicion", ["#8C959F30", COLOURS[1]])
    image = ax.imshow(
        grid,
        cmap=shades,
        vmin=0.0,
        vmax=1.0,
        aspect="auto",
        interpolation="none",
        extent=(first, last, len(grid) - 0.5, -0.5),
    )
    since = excluded(record)
    ax.plot(list(since.values()), list(since), linestyle="none", marker="x", color=COLOURS[0])
    ax.set_xlim(first, last)
    _label_workers(ax)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label("suspicion")


def plot_seconds(rows: Sequence[Row], ax: Axes) -> None:
    """Median milliseconds per round: computing, decoding and the rest, one bar per run."""
    shown = [row for row in rows if row.round_seconds is not None]
    compute = np.array([1e3 * (row.compute_seconds or 0.0) for row in shown])
    decode = np.array([1e3 * (row.decode_seconds or 0.0) for row in shown])
    whole = np.array([1e3 * (row.round_seconds or 0.0) for row in shown])
    rest = np.clip(whole - compute - decode, 0.0, None)
    places = np.arange(len(shown))
    ax.barh(places, compute, color=COLOURS[0], label="compute", height=0.6)
    ax.barh(places, decode, left=compute, color=COLOURS[1], label="decode", height=0.6)
    ax.barh(places, rest, left=compute + decode, color="#8C959F70", label="the rest", height=0.6)
    ax.set_yticks(places, [short(row.title) for row in shown])
    ax.invert_yaxis()
    ax.set_xlabel("median milliseconds per round")
    ax.grid(False, axis="y")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)


def short(title: str) -> str:
    """A title as a label: one line, not long, and no mathematics or hidden entry to matplotlib."""
    plain = "".join(character for character in title if character.isprintable())
    cut = plain if len(plain) <= 36 else plain[:35] + "…"
    return (" " + cut if cut.startswith("_") else cut).replace("$", r"\$")


def _lines(
    records: Sequence[RunRecord],
    ax: Axes,
    name: str,
    *,
    positive: bool = False,
    marker: str | None = None,
    top: float = math.inf,
) -> None:
    for index, record in enumerate(records):
        points = record.series(name)
        if not points:
            continue
        label = short(record.title)
        zeros = sum(value == 0 for _, value in points) if positive else 0
        if zeros:
            label += f" (0 in {zeros} of {len(points)} rounds)"
        if (peak := max(value for _, value in points)) > top:
            label += f" (cut off; up to {peak:.2g})"
        shown = [(x, y) for x, y in points if not positive or y > 0]
        ax.plot(
            [x for x, _ in shown],
            [y for _, y in shown],
            label=label,
            color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index // len(COLOURS) % len(DASHES)],
            # runs that end alike overlap: the earlier ones show as a rim
            linewidth=1.5 + 3.0 * (1 - index / max(len(records) - 1, 1)) * (len(records) > 1),
            marker=marker if len(shown) < 60 or len(shown) == 1 else None,
            markersize=3.5 + 3.0 * (1 - index / max(len(records) - 1, 1)) * (len(records) > 1),
            solid_capstyle="round",
        )
    ax.set_xlabel("rounds completed")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    if len(records) > 1 or positive:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
