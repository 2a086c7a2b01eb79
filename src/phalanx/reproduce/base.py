"""Recipes: a paper's claims, the cells of an experiment, and what its records say of the claims."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from phalanx.data import DataSource, Digits, JpegArchive, NpzFile
from phalanx.experiments import Cell, Records, line_plot, load
from phalanx.experiments.records import Value
from phalanx.reporting import Plot, Table

Progress = Callable[[str], None]
"""Is told in a few words what is being measured now."""

Verdict = Literal["yes", "no", "partly"]

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
    def same(self) -> Verdict | Literal["—"]:
        """Whether ours bear the claim out; a dash where there is nothing to compare with."""
        return "—" if self.holds is None else verdict(self.holds)


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
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)
    """What was run, beside the fields of the recipe."""

    def __add__(self, other: "Findings") -> "Findings":
        """The claims, tables and plots of both; the first answer, and the notes of the first."""
        return replace(
            self,
            answer=self.answer or other.answer,
            claims=[*self.claims, *other.claims],
            tables=[*self.tables, *other.tables],
            plots=[*self.plots, *other.plots],
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

    full: bool = False
    """More rounds, more data and more repeats; minutes otherwise, on two cores."""
    data: Path | None = None
    """The file or folder that was given."""

    @property
    def device(self) -> str:
        """Where training runs: full ones on a GPU, if there is one."""
        return "cuda" if self.full and torch.cuda.is_available() else "cpu"

    def images(self, names: Sequence[str], family: str) -> Images:
        """The paper's images in a full run where they are given; scikit-learn's digits otherwise.

        Args:
            names: files, of which the first that lies in a given folder is taken.
            family: what the data are called, for the note.
        """
        found = self.file(names) if self.full else None
        if found is None:
            what = "scikit-learn's digits, 8 x 8 pixels; full runs take"
            return Images(Digits(), f"{what} {family} where it is given", published=False)
        source = (JpegArchive if "jpeg" in found.name else NpzFile)(found)
        number = len(load(source).train)  # type: ignore[arg-type]
        return Images(source, f"{found.name}, {number} training images", published=True)

    def file(self, names: Sequence[str]) -> Path | None:
        """The file that was given, or the first of `names` in the folder that was given."""
        if self.data is None or self.data.is_file():
            return self.data
        return next((self.data / name for name in names if (self.data / name).is_file()), None)


Measure = Callable[..., Records]
"""Measures a list of cells, or finds their records in the folder of the reproduction; with `jobs=1`
one after the other in this process: for what is timed. None of the records is a failed one."""


@dataclass(frozen=True)
class Recipe(ABC):
    """How a paper's claims are measured: one short file per paper.

    A recipe sets `name` and `paper` and declares `cells` and `findings`; it is found by its name
    once the room imports it. Its fields are the sizes of its experiment, so that a test can make
    them tiny. The paper's figures lie in `figures/<name>.json`, see `published`.
    """

    name: ClassVar[str]
    """What `phalanx reproduce` calls it."""

    paper: ClassVar[str]
    """Authors, title, venue, year."""

    @abstractmethod
    def cells(self, scope: Scope) -> list[Cell]:
        """The experiment; see `phalanx.experiments.grid`."""

    def measure(self, scope: Scope, run: Measure) -> Records:
        """Runs it; overridden where records decide what else is run, or where cells are timed."""
        return run(self.cells(scope))

    @abstractmethod
    def findings(self, found: Records, scope: Scope) -> Findings:
        """What the records say of the claims."""


def published(name: str) -> Any:
    """A paper's figures: the content of `figures/<name>.json`."""
    path = files("phalanx.reproduce") / "figures" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def claim(
    told: Sequence[str | None], ours: str, holds: Sequence[bool] | None = None, **said: Any
) -> Claim:
    """A claim of a data file: `told` is the sentence and the figure, None if that is not quoted.

    >>> claim(["Rank {rank} is as good.", None], "it is", [True], rank=2).text
    'Rank 2 is as good.'
    """
    text, paper = (NOT_QUOTED if one is None else one.format(**said) for one in told)
    return Claim(text, paper, ours, holds)


def claims(
    told: Mapping[str, Any], holds: Mapping[str, Sequence[bool] | None], values: Mapping[str, Any]
) -> list[Claim]:
    """Claims that lie with a paper's figures, in the file that `published` reads.

    Args:
        told: the file's content. Its `"claims"` have by key a text, the paper's figure, which is
            not quoted if it is null, and how ours is told.
        holds: which claims, in order, and whether they hold, see `Claim`.
        values: what stands in braces in all these.
    """
    found = []
    for key, shown in holds.items():
        text, paper, ours = ((one or NOT_QUOTED).format(**values) for one in told["claims"][key])
        found.append(Claim(text, paper, ours, shown))
    return found


def report(
    told: Mapping[str, Any],
    holds: Mapping[str, Sequence[bool] | None],
    values: Mapping[str, Any],
    tables: Mapping[str, Records] | None = None,
    plots: Mapping[str, Mapping[str, Any]] | None = None,
    answer: str | None = None,
) -> Findings:
    """Findings in the words that lie with a paper's figures.

    Args:
        told: see `claims`. Its `"tables"` have by key a title, a caption and the columns, see
            `Records.table`; its `"plots"` the arguments of `line_plot` but its lines.
        holds: see `claims`.
        values: see `claims`; they stand in the answer, in titles and in captions, too.
        tables: their records by key.
        plots: their lines by key.
        answer: the key of the sentence; None in a part that has none.
    """
    shown, drawn = [], []
    for key, records in (tables or {}).items():
        title, caption, columns = told["tables"][key]
        shown.append(records.table(title.format(**values), caption.format(**values), columns))
    for key, lines in (plots or {}).items():
        words = {name: text.format(**values) for name, text in told["plots"][key].items()}
        drawn.append(line_plot(lines=lines, **words))
    sentence = told[answer].format(**values) if answer else ""
    return Findings(sentence, claims(told, holds, values), shown, drawn, told["notes"])


def verdict(shown: Sequence[bool]) -> Verdict:
    """Whether the figures show what is claimed: all of them, some of them, none.

    >>> verdict([True, True]), verdict([True, False]), verdict([False])
    ('yes', 'partly', 'no')
    """
    return "yes" if all(shown) else "partly" if any(shown) else "no"


def figures(values: Sequence[float | None]) -> str:
    """Accuracies in percent, one after the other.

    >>> figures([12.34, None])
    '12.3 / —'
    """
    return " / ".join("—" if value is None else f"{value:.1f}" for value in values)


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


ACCURACY = unless_stopped("last_accuracies")
"""Mean test accuracy of the last evaluations, a share; None if the run stopped."""


def points(found: Records, value: str = "last_accuracies", **labels: Any) -> float | None:
    """A share in percent to a tenth, on average over the records with these labels.

    None if one of the runs stopped.
    """
    average: float | None = found.reduce(unless_stopped(value), to_points, **labels)
    return average
