"""HTML report of FeeBee: scores of estimators, and a picture of each within the corridor."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from phalanx.files import whole
from phalanx.reporting.format import percent
from phalanx.reporting.page import Plot, Table, drawn, render_page
from phalanx.reporting.plots import COLOURS

if TYPE_CHECKING:
    from phalanx.readiness import NoiseRun, Score

_Key = tuple[str, str]
_Scores = Mapping[_Key, "tuple[Score, Score] | None"]


def write_feebee(
    path: Path,
    answer: str,
    runs: Sequence["NoiseRun"],
    scores: _Scores,
    sensitivity: Mapping[float, _Scores],
    best_known_error: float,
    num_classes: int,
) -> None:
    """Writes scores, their sensitivity and one plot an estimator; whole or not at all.

    Args:
        path: where to.
        answer: the result in a sentence.
        runs: all estimates.
        scores: of lower and upper estimates.
        sensitivity: the scores again, by the factor that the best known error is multiplied by.
        best_known_error: the upper end of the corridor without noise.
        num_classes: how many classes there are.
    """
    plots = [plot_corridor(key, runs, best_known_error, num_classes) for key in scores]
    failures = sorted({f"{one.estimator}: {one.failure}" for one in runs if one.failure})
    page = render_page(
        "phalanx.reporting",
        "feebee.html.j2",
        title="Estimators of the Bayes error",
        kind="Phalanx readiness",
        answer=answer,
        origin="",
        tables=[_scores(scores, runs), _sensitivity(sensitivity)],
        plots=drawn(plots),
        failures=failures,
    )
    with whole(path) as beside:
        beside.write_text(page, encoding="utf-8")


def plot_corridor(
    key: _Key, runs: Sequence["NoiseRun"], best_known_error: float, num_classes: int
) -> Plot:
    """Estimates of one estimator over noise, and where the Bayes error must be."""
    mine = [one for one in runs if (one.transformation, one.estimator) == key]
    lines = {side: _means(mine, side) for side in ("lower", "upper")}
    ends = [f"{side} {percent(line[1][-1])}" for side, line in lines.items() if line[1]]
    chance = 1 - 1 / num_classes
    return Plot(
        f"{key[1]} over {key[0]}",
        "Means over the runs, smallest and largest; the Bayes error is within the grey corridor.",
        f"Estimates over label noise, at the most noise: {', '.join(ends) or 'none'}.",
        partial(_draw, lines, best_known_error, chance),
    )


def _means(
    runs: Sequence["NoiseRun"], side: str
) -> tuple[list[float], list[float], list[float], list[float]]:
    rates = sorted({one.rate for one in runs if getattr(one, side) is not None})
    found = [[getattr(one, side) for one in runs if one.rate == rate] for rate in rates]
    known = [[one for one in values if one is not None] for values in found]
    return (
        rates,
        [float(np.mean(values)) for values in known],
        [min(values) for values in known],
        [max(values) for values in known],
    )


def _draw(
    lines: Mapping[str, tuple[list[float], ...]], best: float, chance: float, axes: Axes
) -> None:
    noise = np.linspace(0, 1, 11)
    axes.fill_between(
        100 * noise,
        100 * noise * chance,
        100 * (best + noise * (chance - best)),
        color="#8C959F",
        alpha=0.45,
        label="Bayes error",
    )
    for number, (side, (rates, means, low, high)) in enumerate(lines.items()):
        spread = 100 * np.array([np.subtract(means, low), np.subtract(high, means)])
        axes.errorbar(
            100 * np.array(rates),
            100 * np.array(means),
            yerr=spread if len(rates) else None,
            color=COLOURS[number],
            linestyle="-" if side == "lower" else "--",
            label=f"{side} estimate",
        )
    axes.set(xlabel="labels drawn anew (%)", ylabel="error (%)")
    axes.legend(fontsize="small")


def _scores(scores: _Scores, runs: Sequence["NoiseRun"]) -> Table:
    rows = []
    for (transformation, estimator), found in scores.items():
        seconds = [
            one.seconds
            for one in runs
            if (one.transformation, one.estimator) == (transformation, estimator)
        ]
        figures: list[float | None] = [None] * 6
        if found is not None:
            figures = [value for one in found for value in (one.total, one.over, one.under)]
        rows.append((f"{estimator} over {transformation}", *figures, float(np.median(seconds))))
    headers = ("estimator", "lower", "over", "under", "upper", "over", "under", "s")
    caption = (
        "Distances from the corridor, 0 being best and 1 the score of an estimate that is always "
        "0. A dash: it failed. The smallest score of a column was not fixed before looking: on "
        "other data it is likely larger. s: median seconds of a run."
    )
    return Table("Scores", caption, headers, tuple(rows))


def _sensitivity(sensitivity: Mapping[float, _Scores]) -> Table:
    keys = list(next(iter(sensitivity.values())))
    rows = []
    for key in keys:
        pairs = [found[key] for found in sensitivity.values()]
        rows.append(
            (f"{key[1]} over {key[0]}", *(None if one is None else one[0].total for one in pairs))
        )
    caption = "Scores of the lower estimates where the best known error is multiplied by a factor."
    headers = ("estimator", *(f"x {factor:g}" for factor in sensitivity))
    return Table("If the best known error is another", caption, headers, tuple(rows))
