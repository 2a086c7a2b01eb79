"""Experiment grids: a function times axes of values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from phalanx.experiments.labels import labels
from phalanx.experiments.records import Label, place
from phalanx.identity import description, digest

Run = Callable[..., Mapping[str, Any]]
"""What is measured: a function of a module (or a `functools.partial`, or a dataclass that can be
called) from keyword arguments to named values. One that had to stop early says why under the name
`"stopped"`, beside what it could measure."""


@dataclass(frozen=True)
class Cell:
    """Cell of an experiment: one run."""

    run: Run
    """What is called."""
    arguments: Mapping[str, Any]
    """What it is called with."""
    labels: Mapping[str, Label]
    """What its axes call it."""
    skipped: str | None = None
    """Why it does not apply, so that it is not run; None if it does."""
    alone: bool = False
    """Whether it is timed: then nothing else runs beside it, and it runs in the calling process."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that its record depends on, as plain values.

        Raises:
            ValueError: if something has no name that another process could find it by.
        """
        return {"run": description(self.run), "arguments": description(dict(self.arguments))}

    @cached_property
    def identity(self) -> str:
        """A hash of `config`: cells with the same one have the same record."""
        return digest(self.config)

    def __str__(self) -> str:
        return place(self.labels)


def grid(
    run: Run,
    axes: Mapping[str, Sequence[Any] | Mapping[Any, Any]],
    fixed: Mapping[str, Any] | None = None,
    skip: Callable[..., str | None] | None = None,
    *,
    alone: bool = False,
) -> list[Cell]:
    """A cell for every combination of the axes' values; the last axis runs fastest.

    Experiments that are no plain product are sums of grids: lists of cells are added.

    >>> from phalanx.aggregation import Krum, Mean
    >>> staged = {"no attack": {}, "silence": {"attack": "silence", "num_byzantine": 2}}
    >>> cells = grid(dict, {"rule": [Mean(), Krum()], "attack": staged, "seed": [0]})
    >>> str(cells[1]), cells[1].arguments
    ('Mean, silence, seed 0', {'rule': Mean(), 'attack': 'silence', 'num_byzantine': 2, 'seed': 0})

    Args:
        run: what is called with one value of each axis.
        axes: by name of the argument, a sequence of values, which get short labels, or a mapping
            from labels to values. A value that is a mapping stands for several arguments: it is
            merged into the call, and the axis is a label only.
        fixed: arguments of all cells.
        skip: called with all arguments of a cell; says why the cell does not apply, or None.
        alone: whether cells are timed, so that nothing else may run beside them.

    Raises:
        ValueError: if an axis has no value or the same one twice.
    """
    named = {axis: _named(axis, values) for axis, values in axes.items()}
    cells = []
    for chosen in product(*(values.items() for values in named.values())):
        arguments: dict[str, Any] = dict(fixed or {})
        for axis, (_, value) in zip(named, chosen, strict=True):
            arguments |= value if isinstance(value, Mapping) else {axis: value}
        found = {axis: label for axis, (label, _) in zip(named, chosen, strict=True)}
        reason = skip(**arguments) if skip else None
        cells.append(Cell(run, arguments, found, reason, alone))
    return cells


def _named(axis: str, values: Sequence[Any] | Mapping[Any, Any]) -> dict[Label, Any]:
    if isinstance(values, Mapping):
        named = dict(values)
    else:
        told = iter(labels([value for value in values if not isinstance(value, Label)]))
        named = {v if isinstance(v, Label) else next(told): v for v in values}
    if not named or len(named) < len(values):
        raise ValueError(f"{axis} must name at least 1, and none twice, got {list(values)}")
    return named
