"""Recipes: a paper's claims, the cells of an experiment, and what its records say of the claims."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from string import Formatter
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch

from phalanx.data import DataSource, Digits, JpegArchive, NpzFile
from phalanx.experiments import Cell, Pivot, Records, line_plot, load
from phalanx.experiments.records import Value
from phalanx.reporting import Plot, Table
from phalanx.reporting.format import difference, percent

Verdict = Literal["yes", "no", "partly", "—"]
Size = Literal["quick", "default", "full"]
SIZES: tuple[Size, ...] = ("quick", "default", "full")
"""About a minute, to see the shape; what is published; the paper's sizes, on a GPU."""

_FIGURES = files("phalanx.reproduce") / "figures"
NOT_QUOTED = "not quoted: not certain"
"""Stands where we are not certain of the paper's figure: then it is not printed."""


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, its figure, and ours."""

    text: str
    """What the paper says, in one sentence."""
    paper: str
    """The paper's figure, or that it is not quoted."""
    ours: str
    """What was measured here."""
    holds: Sequence[bool] | None = None
    """Whether our figures show it, one by one; None where there is nothing to compare with."""

    @property
    def same(self) -> Verdict:
        """Whether ours bear the claim out: all of them, some of them, none; or a dash.

        >>> [Claim("", "", "", one).same for one in ([True, True], [True, False], [False], None)]
        ['yes', 'partly', 'no', '—']
        """
        if self.holds is None:
            return "—"
        return "yes" if all(self.holds) else "partly" if any(self.holds) else "no"


@dataclass(frozen=True)
class Findings:
    """What a recipe found out."""

    answer: str
    """The outcome in one sentence."""
    claims: Sequence[Claim]
    """Each beside what was measured."""
    tables: Sequence[Table] = ()
    """The figures behind them."""
    plots: Sequence[Plot] = ()
    """Pictures of them."""
    notes: Sequence[str] = ()
    """What one must know to judge them: data, sizes, what differs from the paper."""

    def __add__(self, other: "Findings") -> "Findings":
        """The claims, tables and plots of both; the answer and the notes of the first that has."""
        return Findings(
            self.answer or other.answer,
            [*self.claims, *other.claims],
            [*self.tables, *other.tables],
            [*self.plots, *other.plots],
            self.notes or other.notes,
        )


class Images(NamedTuple):
    """Data of a recipe."""

    source: DataSource
    """The data."""
    origin: str
    """What they are, for a note."""
    published: bool
    """Whether they are what the paper used."""


@dataclass(frozen=True)
class Scope:
    """How large a reproduction is, and on what."""

    size: Size = "quick"
    """One of `SIZES`."""
    data: Path | None = None
    """The folder or file that was given."""

    @property
    def full(self) -> bool:
        """Whether this is the largest size."""
        return self.size == "full"

    @property
    def device(self) -> str:
        """Where training runs: full ones on a GPU, if there is one."""
        return "cuda" if self.full and torch.cuda.is_available() else "cpu"

    def images(
        self, names: Sequence[str], family: str, sizes: Sequence[Size] = ("full",)
    ) -> Images:
        """The paper's images, or scikit-learn's digits at the sizes that do without.

        Args:
            names: files, of which the first that lies in the given folder is taken.
            family: what the data are called, for the note.
            sizes: those that take the paper's images.

        Raises:
            ValueError: if this size takes them, and they are not there.
        """
        if self.size not in sizes:
            origin = "scikit-learn's digits, 8 x 8 pixels; at size {} {} ({})"
            told = origin.format(" and ".join(sizes), family, " or ".join(names))
            return Images(Digits(), told, published=False)
        found = self.file(*names)
        source = (JpegArchive if "jpeg" in found.name else NpzFile)(found)
        number = len(load(source).train)  # type: ignore[arg-type]
        return Images(source, f"{found.name}, {number} training images", published=True)

    def file(self, *names: str) -> Path:
        """The file that was given, if of their kind, or the first of `names` in the given folder.

        Raises:
            ValueError: if there is none.
        """
        if (given := self.data) is not None:
            for name in names:
                if given.is_file() and given.suffixes == Path(name).suffixes:
                    return given
                if (given / name).is_file():
                    return given / name
        raise ValueError(
            f"data must be a folder with {' or '.join(names)} at size {self.size}, got {self.data}"
            "; name it with --data or PHALANX_DATA, or take --size quick"
        )


def sized(quick: Any, default: Any, full: Any) -> Any:
    """A field of a recipe that differs from size to size, unless it is given."""
    return field(default=None, metadata=dict(zip(SIZES, (quick, default, full), strict=True)))


_Recipe = TypeVar("_Recipe", bound="Recipe")
Measure = Callable[[Sequence[Cell]], Records]
"""Measures a list of cells, or finds their records in the folder of the reproduction. None of the
records is a failed one."""


@dataclass(frozen=True)
class Recipe(ABC):
    """How a paper's claims are measured: one short file per paper.

    A recipe sets `name` and declares `cells` and `findings`; it is found by its name once the room
    imports it. Its fields are the sizes of its experiment, see `sized`, so that a test can make
    them tiny. The paper, its claims and figures, and all words lie in `figures/<name>.json`, see
    `report`.
    """

    name: ClassVar[str]
    """What `phalanx reproduce` calls it."""

    paper: ClassVar[str]
    """Authors, title, venue, year."""

    told: ClassVar[Mapping[str, Any]]
    """The content of `figures/<name>.json`."""

    def __init_subclass__(cls) -> None:
        if (_FIGURES / f"{cls.name}.json").is_file():
            cls.told = published(cls.name)
            cls.paper = cls.told["paper"]

    def at(self: _Recipe, size: Size) -> _Recipe:
        """The recipe with the sizes that it does not say itself; see `sized`."""
        left = [one for one in fields(self) if getattr(self, one.name) is None and one.metadata]
        return replace(self, **{one.name: one.metadata[size] for one in left})

    @abstractmethod
    def cells(self, scope: Scope) -> list[Cell]:
        """The experiment; see `phalanx.experiments.grid`. What is timed is `alone`."""

    def measure(self, scope: Scope, run: Measure) -> Records:
        """Runs it; overridden where records decide what else is run."""
        return run(self.cells(scope))

    @abstractmethod
    def findings(self, found: Records, scope: Scope) -> Findings:
        """What the records say of the claims; see `report`."""


def published(name: str) -> Any:
    """A paper's claims and figures: the content of `figures/<name>.json`."""
    return json.loads((_FIGURES / f"{name}.json").read_text(encoding="utf-8"))


def report(
    told: Mapping[str, Any],
    holds: Mapping[str, Sequence[bool] | None],
    values: Mapping[str, Any],
    tables: Mapping[str, Any] | None = None,
    plots: Mapping[str, Any] | None = None,
    answer: str | None = None,
    notes: Sequence[str] = ("notes",),
) -> Findings:
    """Findings in the words that lie with a paper's figures.

    What stands in braces in the words is looked up in the values and written as `words` says.
    Where a claim or a table stands for several, reports are added.

    Args:
        told: `Recipe.told`. Its `"claims"` have by key a text, the paper's figure, which is not
            quoted if it is null, and how ours is told; its `"tables"` a title, a caption and the
            columns (see `Records.table`; of a pivot table the corner, see `Pivot.table`); its
            `"plots"` the arguments of `line_plot` but its lines.
        holds: which claims, in order, and whether they hold, see `Claim`.
        values: what stands in braces.
        tables: their records, pivot tables or rows, by key.
        plots: their lines by key.
        answer: the key of the sentence; None in a part that has none, and no notes.
        notes: the keys of sentences, or of lists of them.
    """
    claims = []
    for key, held in holds.items():
        text, paper, ours = (words(one or NOT_QUOTED, values) for one in told["claims"][key])
        claims.append(Claim(text, paper, ours, held))
    shown = []
    for key, content in (tables or {}).items():
        *said, columns = told["tables"][key]
        title, caption = (words(one, values) for one in said)
        if isinstance(content, Records | Pivot):
            shown.append(content.table(title, caption, columns))
        else:
            headers = tuple(words(one, values) for one in columns)
            shown.append(Table(title, caption, headers, tuple(map(tuple, content))))
    drawn = []
    for key, lines in (plots or {}).items():
        arguments: Any = {name: words(one, values) for name, one in told["plots"][key].items()}
        drawn.append(line_plot(lines=lines, **arguments))
    if answer is None:
        return Findings("", claims, shown, drawn)
    lists = [told[key] if isinstance(told[key], list) else [told[key]] for key in notes]
    said = [words(one, values) for each in lists for one in each]
    return Findings(words(told[answer], values), claims, shown, drawn, said)


def words(text: str, values: Mapping[str, Any]) -> str:
    """A text with values in it: `str.format` that knows lists, mappings and None.

    >>> words("{rule}: {runs:.1f}; {each:percent}", {"rule": "Krum", "runs": [1, None], "each":
    ...     {"mean": 0.5}})
    'Krum: 1.0 / —; mean 50.0 %'
    """
    return _Words().vformat(text, (), values)


class _Words(Formatter):
    _KNOWN: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "percent": percent,
        "difference": difference,
    }

    def format_field(self, value: Any, spec: str) -> str:
        if isinstance(value, Mapping):
            told = [f"{key} {self.format_field(one, spec)}" for key, one in value.items()]
            return ", ".join(told)
        if isinstance(value, list | tuple) and not isinstance(value, Records):
            nested = any(isinstance(one, list | tuple) for one in value)
            return ("; " if nested else " / ").join(self.format_field(one, spec) for one in value)
        if value is None:
            return "—"
        return self._KNOWN[spec](value) if spec in self._KNOWN else format(value, spec)


def above(one: float | None, other: float | None, by: float = 0.0) -> bool:
    """Whether an accuracy is higher by so many points; a run that stopped has none."""
    return (one or 0.0) >= (other or 0.0) + by


def to_points(shares: Sequence[float]) -> float:
    """The mean of shares in percent, to a tenth.

    >>> to_points([0.5, 0.625])
    56.2
    """
    return round(100 * fmean(shares), 1)


def unless_stopped(value: str) -> Value:
    """What a record has under a name; None if the run stopped."""
    return lambda one: one[value] if one.status == "finished" else None


def points(found: Records, value: str = "last_accuracies", **labels: Any) -> float | None:
    """A share in percent to a tenth, on average over the records with these labels.

    None if one of the runs stopped.
    """
    average: float | None = found.reduce(unless_stopped(value), to_points, **labels)
    return average
