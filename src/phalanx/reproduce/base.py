"""What a recipe looks like: a paper, its claims, and how to measure them here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from phalanx.reporting import Plot, Table

Progress = Callable[[str], None]
"""Is told in a few words what is being measured now."""

MakeModel = Callable[[tuple[int, ...], int], nn.Module]
"""Makes a model from the shape of an input and the number of classes."""

Verdict = Literal["yes", "no", "partly"]

NOT_QUOTED = "not quoted: not certain"
"""Stands where we are not certain of the paper's figure: then it is not printed."""


@dataclass(frozen=True)
class Finding:
    """One claim of a paper, its figure, and ours."""

    claim: str
    """What the paper says, in one sentence."""
    paper: str
    """The paper's figure, or that it is not quoted."""
    ours: str
    """What was measured here."""
    same: Verdict | Literal["—"]
    """Whether ours bears the claim out; a dash where there is nothing to compare with."""


@dataclass(frozen=True)
class Findings:
    """What a recipe found out."""

    answer: str
    """The outcome in one sentence."""
    findings: tuple[Finding, ...]
    """One a claim."""
    tables: tuple[Table, ...] = ()
    """The figures behind them."""
    plots: tuple[Plot, ...] = ()
    """Pictures of them."""
    notes: tuple[str, ...] = ()
    """What one must know to judge them: data, sizes, what differs from the paper."""
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)
    """What was run."""


@dataclass(frozen=True)
class Recipe(ABC):
    """How a paper's claims are measured: one short file a paper.

    A recipe sets `name` and `paper` and implements `measure`; it is found by its name once the
    room imports it. Its fields are the sizes of its experiment, so that a test can make them tiny.
    """

    name: ClassVar[str]
    """What `phalanx reproduce` calls it."""

    paper: ClassVar[str]
    """Authors, title, venue, year."""

    @abstractmethod
    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Runs the experiment.

        Args:
            out: a folder for whatever it leaves, run folders among it.
            full: more rounds, more data and more repeats; minutes otherwise, on two cores.
            data: where its data lies; what a recipe falls back to, it says in its notes.
            progress: is told what happens.
        """


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
