"""Choosing the best label of an axis, such as the learning rate, by one seed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from phalanx.experiments.grid import Cell
from phalanx.experiments.records import Label, Record, Records


def tuned(
    cells: Sequence[Cell],
    axis: str,
    loss: str,
    run: Callable[[Sequence[Cell]], Records],
    over: str = "seed",
) -> Records:
    """Measures all labels of an axis with the first seed, and all seeds with the best of them.

    The best has the least loss, for each combination of the other labels: these are `labels + seeds
    - 1` runs instead of `labels * seeds`. Of equal losses the first one is taken; one that was not
    measured is infinite. Cells without the axis are all run.

    Args:
        cells: whole grids, all labels with all seeds.
        axis: whose label is chosen.
        loss: the value that is to be least.
        run: measures cells, such as `measure` or a `functools.partial` of it.
        over: the axis of the seeds.

    Returns:
        All that was measured, in the order of the cells, with one label more: `"tuned"`, True for
        those with the chosen label.

    >>> from functools import partial
    >>> from phalanx.experiments import grid, measure
    >>> cells = grid(dict, {"rate": {"low": {"loss": 2}, "high": {"loss": 1}}, "seed": [0, 1]})
    >>> found = tuned(cells, "rate", "loss", partial(measure, jobs=1))
    >>> len(found), found.where(tuned=True).labels("rate")
    (3, ['high'])
    """
    seed = next((cell.labels[over] for cell in cells if axis in cell.labels), None)
    first = [one for one in cells if axis not in one.labels or one.labels[over] == seed]
    found = dict(zip(map(id, first), run(first), strict=True))
    best: dict[tuple[tuple[str, Label], ...], Record] = {}
    for one in found.values():
        best.setdefault(key := _others(one, axis, over), one)
        if _number(one[loss]) < _number(best[key][loss]):
            best[key] = one
    chosen = [
        cell
        for cell in cells
        if axis not in cell.labels or best[_others(cell, axis, over)][axis] == cell.labels[axis]
    ]
    more = [cell for cell in chosen if id(cell) not in found]
    found |= zip(map(id, more), run(more), strict=True)
    marked = {id(cell) for cell in chosen}
    return Records(
        replace(found[key], labels={**found[key].labels, "tuned": key in marked})
        for key in map(id, cells)
        if key in found
    )


def _others(one: Cell | Record, axis: str, over: str) -> tuple[tuple[str, Label], ...]:
    return tuple(pair for pair in one.labels.items() if pair[0] not in (axis, over))


def _number(loss: Any) -> Any:
    return math.inf if loss is None else loss
