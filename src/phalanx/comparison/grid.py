"""Which cells there are: methods x attacks x splits x worker momenta x seeds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple, TypeVar

from phalanx.aggregation import (
    Aggregator,
    CenteredClipping,
    CoordinateMedian,
    Krum,
    Mean,
    NearestNeighborMixing,
    TrimmedMean,
)
from phalanx.attacks import (
    ALittleIsEnough,
    Attack,
    InnerProductManipulation,
    ReverseGradient,
    SignFlip,
)
from phalanx.coding import Code, DracoRepetition
from phalanx.comparison.cell import Cell, Setting
from phalanx.data import Partitioner
from phalanx.experiments.identity import description, digest
from phalanx.experiments.labels import labels
from phalanx.transforms import WorkerMomentum

_Thing = TypeVar("_Thing")
NO_ATTACK = "no attack"
SHARED_DATA = "shared data"


class Place(NamedTuple):
    """Where a cell stands: labels, in the order of the grid."""

    split: str
    """Which data the workers have, and what momentum."""
    method: str
    """Row."""
    attack: str
    """Column."""
    seed: int
    """One of several runs that are averaged."""

    def __str__(self) -> str:
        return f"{self.method}, {self.attack}, {self.split}, seed {self.seed}"


class _Method(NamedTuple):
    used: Aggregator | Code
    unfit: str | None


def default_rules() -> list[Aggregator]:
    """Rules of every kind: one by one coordinate, by distances, mixed first, with a memory."""
    mixed = NearestNeighborMixing() >> TrimmedMean()
    return [Krum(), CoordinateMedian(), mixed, CenteredClipping()]


def default_codes() -> list[Code]:
    """The code that is exact bit for bit."""
    return [DracoRepetition()]


def default_attacks() -> list[Attack]:
    """A plain one, a large one, and two that hide."""
    return [SignFlip(), ReverseGradient(), ALittleIsEnough(), InnerProductManipulation()]


@dataclass(frozen=True)
class Grid:
    """What is compared under what.

    The plain mean and "no attack" are always among it, and come first. Rules and codes that leave
    `num_workers` or `num_byzantine` at the default are told the numbers of the setting.

    >>> from phalanx.attacks import SignFlip
    >>> grid = Grid(rules=[Krum()], attacks=[SignFlip()], setting=Setting(9, 2))
    >>> grid.methods, grid.columns
    (['Mean', 'Krum', 'DracoRepetition'], ['no attack', 'SignFlip'])
    >>> len(grid.cells), [cell.method for cell in grid.cells.values()][4]
    (12, Krum(num_byzantine=2, neighbours='paper'))
    """

    rules: Sequence[Aggregator] = field(default_factory=default_rules)
    """Robust rules; pipelines such as `NearestNeighborMixing() >> Krum()` among them."""
    codes: Sequence[Code] = field(default_factory=default_codes)
    """Gradient codes."""
    attacks: Sequence[Attack | None] = field(default_factory=default_attacks)
    """What bad workers do."""
    splits: Sequence[Partitioner | None] = (None,)
    """Who holds which samples; None for workers that all draw from the whole data set."""
    worker_momenta: Sequence[WorkerMomentum | None] = (None,)
    """What workers average before they send; None for gradients."""
    seeds: Sequence[int] = (0, 1)
    """A run each."""
    setting: Setting = Setting()  # noqa: RUF009 - frozen
    """What all runs share."""

    def __post_init__(self) -> None:
        for name in ("splits", "worker_momenta", "seeds"):
            given = list(getattr(self, name))
            if not given or any(given.count(one) > 1 for one in given):
                raise ValueError(f"{name} must name at least 1, and none twice, got {given}")
        _ = self.cells  # what cannot be named is refused now

    @cached_property
    def _methods(self) -> list[_Method]:
        given: list[Aggregator | Code] = [Mean(), *self.rules, *self.codes]
        told = [_told(method, self.setting) for method in given]
        return _distinct(told, lambda method: method.used)

    @cached_property
    def methods(self) -> list[str]:
        """The labels of rules and codes: rows of a table."""
        usual = {one: getattr(self.setting, one) for one in ("num_workers", "num_byzantine")}
        return labels([method.used for method in self._methods], usual)

    @cached_property
    def _attacks(self) -> list[Attack | None]:
        given = [attack for attack in self.attacks if attack is not None]
        return [None, *_distinct(given, lambda attack: attack)]

    @cached_property
    def columns(self) -> list[str]:
        """The labels of the attacks, "no attack" first."""
        return [NO_ATTACK, *labels(self._attacks[1:])]

    @cached_property
    def panels(self) -> list[str]:
        """The labels of the splits, each with each of the worker momenta: a table each."""
        splits = _labels_or(self.splits, SHARED_DATA)
        momenta = _labels_or(self.worker_momenta, "gradients")
        if len(momenta) == 1:
            return splits
        return [f"{split}, {momentum}" for split, momentum in product(splits, momenta)]

    @cached_property
    def cells(self) -> dict[Place, Cell]:
        """Every run, seeds innermost."""
        return dict(self._cells())

    def _cells(self) -> Iterator[tuple[Place, Cell]]:
        panels = zip(self.panels, product(self.splits, self.worker_momenta), strict=True)
        rows = list(zip(self.methods, self._methods, strict=True))
        columns = list(zip(self.columns, self._attacks, strict=True))
        for (panel, (shards, momentum)), (row, method), (column, attack), seed in product(
            panels, rows, columns, self.seeds
        ):
            cell = Cell(method.used, attack, shards, momentum, seed, self.setting, method.unfit)
            cell.config  # noqa: B018 - what cannot be named is refused here
            yield Place(panel, row, column, seed), cell


def _distinct(things: Sequence[_Thing], key: Callable[[_Thing], Any]) -> list[_Thing]:
    """The things without repetitions: those whose keys are described alike are the same."""
    found: dict[str, _Thing] = {}
    for thing in things:
        found.setdefault(digest(description(key(thing))), thing)
    return list(found.values())


def _labels_or(things: Sequence[Any], nothing: str) -> list[str]:
    """Labels; `nothing` stands for None."""
    named = iter(labels([thing for thing in things if thing is not None]))
    return [nothing if thing is None else next(named) for thing in things]


def _told(method: Aggregator | Code, setting: Setting) -> _Method:
    """The method with the numbers of the setting where it leaves them at the default."""
    try:
        if isinstance(method, Code):
            return _Method(_told_code(method, setting), None)
        usual = getattr(type(method)(), "num_byzantine", None)
        if getattr(method, "num_byzantine", usual) == usual:
            return _Method(method.with_num_byzantine(setting.num_byzantine), None)
        return _Method(method, None)
    except ValueError as error:  # a row of its own says so
        return _Method(method, str(error))


def _told_code(code: Code, setting: Setting) -> Code:
    numbers = {
        one.name: getattr(setting, one.name)
        for one in fields(code)
        if one.name in ("num_workers", "num_byzantine") and getattr(code, one.name) == one.default
    }
    told = replace(code, **numbers)
    if told.num_workers != setting.num_workers:
        raise ValueError(
            f"num_workers must be that of the grid, {setting.num_workers}, got {told.num_workers}"
        )
    return told
