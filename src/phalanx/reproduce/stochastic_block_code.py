"""Stochastic block codes: good against bad luck, and with groups that an adversary must find."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor

from phalanx.coding import (
    ApproximateCode,
    BernoulliGradientCode,
    BlockStragglers,
    ErasureHead,
    GreedyStragglers,
    RandomStragglers,
    SpectralStragglers,
    StochasticBlockCode,
)
from phalanx.randomness import generator
from phalanx.reporting import Plot, Table
from phalanx.reporting.format import listed
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe

_REPETITION, _BERNOULLI = "fractional repetition", "Bernoulli"
_CLEAR, _HIDDEN = "block, clear groups", "block, hidden groups"
_CHOICES = {
    "random": "drawn uniformly",
    "groups known": "whole groups, by an adversary who knows them",
    "groups found": "whole groups, by an adversary who looks for them by spectral clustering",
    "greedy": "one by one, each the most painful loss",
}
_NOTES = (
    "err is the squared distance of the partitions' weights in the decoded sum from one, summed "
    "over the partitions: 0 is exact, and their number is no gradient at all.",
    "The laws are derived for this package; the paper's own figures are not quoted.",
    "Nothing is trained: the error depends on who computes what and who is silent, not on data.",
    "Known groups of the Bernoulli code, which has none, are workers of neighbouring numbers.",
)


@dataclass(frozen=True)
class Drawn:
    """Errors of one code under one choice of so many stragglers, over the draws."""

    code: str
    """The code's name."""
    choice: str
    """How the stragglers are chosen."""
    stragglers: int
    """How many are silent."""
    one_step: list[float]
    """err of the one-step decoder, one a draw."""
    optimal: list[float]
    """err of the optimal decoder, one a draw."""
    law: float
    """Expected err of the one-step decoder under random stragglers."""


@dataclass(frozen=True)
class StochasticBlockCodes(Recipe):
    """Decoding errors of repetition, block and Bernoulli codes against the number of stragglers.

    Stragglers are random, or chosen by adversaries who know the groups, look for them, or take the
    worst worker each time. The one-step decoder stands beside its law.

    Cost: in quick mode about a minute on two cores.
    Source: Charles and Papailiopoulos, "Gradient Coding Using the Stochastic Block Model", ISIT
    2018.
    """

    name: ClassVar[str] = "stochastic-block-code"
    paper: ClassVar[str] = (
        "Charles and Papailiopoulos, Gradient Coding Using the Stochastic Block Model, ISIT 2018"
    )

    num_workers: int = 100
    """Workers, and partitions (k)."""

    load: int = 5
    """Partitions that a worker computes, and workers in a group (s)."""

    inside: float = 0.7
    """Share of a worker's partitions that are of its own group, where groups are clear (p)."""

    stragglers: tuple[int, ...] = (5, 10, 20, 30, 40, 50)
    """Numbers of silent workers, growing."""

    draws: int | None = None
    """Assignments and sets of stragglers to average over; by default 100, or 1000 in full."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Draws assignments and stragglers, and decodes; `data` is not needed."""
        draws = self.draws or (1000 if full else 100)
        collected: dict[tuple[str, str, int], Drawn] = {}
        found_share: dict[str, list[float]] = defaultdict(list)
        for seed in range(draws):
            progress(f"draw {seed + 1} of {draws}")
            for name, code in self.codes(seed).items():
                for choice, order in self._orders(name, code, seed, found_share):
                    for number in self.stragglers:
                        self._decode(collected, (name, choice, number), code, order)
        drawn = list(collected.values())
        shares = {name: statistics.mean(values) for name, values in found_share.items()}
        return Findings(
            answer=self._answer(collected),
            findings=self._findings(collected, shares),
            tables=tuple(_table(choice, drawn) for choice in _CHOICES),
            plots=tuple(_plot(choice, drawn, self.num_workers) for choice in _CHOICES),
            notes=_NOTES,
            settings={
                "num_workers": self.num_workers,
                "load": self.load,
                "inside": self.inside,
                "draws": draws,
                "full": full,
            },
        )

    def codes(self, seed: int) -> dict[str, ApproximateCode]:
        """The codes of one draw, all of the same expected load."""
        size, load = self.num_workers, self.load
        across = (1 - self.inside) * load / (size - load)
        clear = StochasticBlockCode(
            size, cluster_size=load, inside=self.inside, across=across, seed=seed
        )
        return {
            _REPETITION: ErasureHead(size, copies=load, rescale=False),
            _CLEAR: clear,
            _HIDDEN: StochasticBlockCode.recommend(size, load, load, seed=seed),
            _BERNOULLI: BernoulliGradientCode(size, expected_load=load, seed=seed),
        }

    def _orders(
        self, name: str, code: ApproximateCode, seed: int, found_share: dict[str, list[float]]
    ) -> Iterator[tuple[str, list[int]]]:
        """In which order each adversary silences the workers."""
        most, held = max(self.stragglers), code.assignment
        groups = torch.arange(self.num_workers) // self.load
        if isinstance(code, StochasticBlockCode):
            groups = code.clusters
        spectral = SpectralStragglers(most, self.num_workers // self.load)
        guessed = spectral.estimate(held, generator(seed, "spectral", name))
        found_share[name].append(_agreement(guessed, groups))
        draw = generator(seed, "stragglers", name)
        yield "random", RandomStragglers(most).choose(held, draw)
        yield "groups known", BlockStragglers(most, groups.tolist()).choose(held, draw)
        yield "groups found", BlockStragglers(most, guessed.tolist()).choose(held, draw)
        yield "greedy", GreedyStragglers(most).choose(held, draw)

    def _decode(
        self,
        collected: dict[tuple[str, str, int], Drawn],
        key: tuple[str, str, int],
        code: ApproximateCode,
        order: list[int],
    ) -> None:
        """Adds the errors of one set of stragglers."""
        arrived = torch.ones(self.num_workers, dtype=torch.bool)
        arrived[order[: key[2]]] = False
        simple = replace(code, decoding="one-step")
        if key not in collected:
            law = simple.expected_squared_error(self.num_workers - key[2])
            collected[key] = Drawn(*key, [], [], self.num_workers * law)
        collected[key].one_step.append(_error(simple, arrived))
        collected[key].optimal.append(_error(code, arrived))

    def _answer(self, drawn: dict[tuple[str, str, int], Drawn]) -> str:
        number = self._middle()
        lucky, hostile = (
            {name: _mean(drawn[name, choice, number].optimal) for name in (_REPETITION, _CLEAR)}
            for choice in ("random", "groups known")
        )
        return (
            f"With {number} of {self.num_workers} workers silent by chance, fractional repetition "
            f"leaves an error of {lucky[_REPETITION]:.2g} and the block code {lucky[_CLEAR]:.2g}; "
            f"silenced by an adversary who knows the groups, {hostile[_REPETITION]:.2g} and "
            f"{hostile[_CLEAR]:.2g}."
        )

    def _middle(self) -> int:
        """The number of stragglers of the findings: a fifth of the workers, or near."""
        return min(self.stragglers, key=lambda number: abs(number - self.num_workers // 5))

    def _findings(
        self, drawn: dict[tuple[str, str, int], Drawn], shares: dict[str, float]
    ) -> tuple[Finding, ...]:
        number = self._middle()
        laws = [
            _law_finding(drawn[name, "random", number], self.num_workers)
            for name in (_REPETITION, _CLEAR, _BERNOULLI)
        ]
        names = (_REPETITION, _CLEAR, _BERNOULLI)
        random, known = (
            [_mean(drawn[name, choice, number].optimal) for name in names]
            for choice in ("random", "groups known")
        )
        lost = number - number % self.load
        exact = math.isclose(known[0], lost, abs_tol=1e-6)
        clear, hidden = shares[_CLEAR], shares[_HIDDEN]
        return (
            *laws,
            Finding(
                "Against random stragglers repetition is best, the block code next, Bernoulli last "
                "(optimal decoding).",
                "repetition < block < Bernoulli",
                " < ".join(f"{value:.3g}" for value in random)
                if sorted(random) == random
                else ", ".join(f"{value:.3g}" for value in random),
                "yes" if sorted(random) == random else "no",
            ),
            Finding(
                "An adversary who knows the groups takes one partition from repetition with every "
                "straggler, and less from the others (optimal decoding).",
                f"{lost}; less; less",
                "; ".join(f"{value:.3g}" for value in known),
                "yes" if exact and max(known[1:]) < known[0] else "no",
            ),
            Finding(
                "Groups are found above the threshold of community detection, and not below.",
                "found; not found",
                f"of pairs of one group, spectral clustering puts {100 * clear:.0f} % together "
                f"above it and {100 * hidden:.0f} % just below; a guess "
                f"{100 * self.load / self.num_workers:.0f} %",
                "yes" if clear > 0.8 and hidden < 0.2 else "partly" if clear > hidden else "no",
            ),
            Finding(
                "To choose the worst stragglers is hard in general.",
                NOT_QUOTED,
                "the greedy adversary, who knows no groups, leaves "
                + listed(
                    [
                        f"{_mean(drawn[name, 'greedy', number].optimal):.3g} ({name})"
                        for name in (_REPETITION, _CLEAR, _HIDDEN, _BERNOULLI)
                    ]
                ),
                "—",
            ),
        )


def _law_finding(one: Drawn, size: int) -> Finding:
    """Whether the one-step decoder's error is what its law says, up to chance."""
    mean, deviation = _mean(one.one_step), _standard_error(one.one_step)
    near = abs(mean - one.law) <= 3 * deviation + 1e-9
    return Finding(
        f"Expected one-step error of {one.code}, {one.stragglers} of {size} silent by chance.",
        f"{one.law:.4g} (our law)",
        f"{mean:.4g} ± {deviation:.2g}",
        "yes" if near else "no",
    )


def _error(code: ApproximateCode, arrived: Tensor) -> float:
    share = code.coefficients(arrived) @ code.weights
    return float((share - 1).square().sum())


def _agreement(found: Tensor, groups: Tensor) -> float:
    """The share of pairs of one group that are found to belong together."""
    together = groups[:, None] == groups[None, :]
    together.fill_diagonal_(False)
    return float((found[:, None] == found[None, :])[together].double().mean())


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def _table(choice: str, drawn: Sequence[Drawn]) -> Table:
    headers = ("code", "stragglers", "one step", "± standard error", "law", "optimal")
    rows = tuple(
        (
            one.code,
            one.stragglers,
            _mean(one.one_step),
            _standard_error(one.one_step),
            one.law if choice == "random" else None,
            _mean(one.optimal),
        )
        for one in drawn
        if one.choice == choice
    )
    caption = "Means over the draws of err; the law is that of one step under random stragglers."
    return Table(f"Stragglers: {_CHOICES[choice]}", caption, headers, rows)


def _plot(choice: str, drawn: Sequence[Drawn], size: int) -> Plot:
    shown = [one for one in drawn if one.choice == choice]
    most = max(one.stragglers for one in shown)
    ends = "; ".join(
        f"{one.code} {_mean(one.optimal):.3g}" for one in shown if one.stragglers == most
    )
    title = f"Error against stragglers: {_CHOICES[choice]}"
    caption = "Optimal decoding in full lines; one step dotted, where its law is."
    alt = f"{title}. With {most} of {size} silent: {ends}."
    return Plot(title, caption, alt, partial(plot_errors, shown, laws=choice == "random"))


def plot_errors(drawn: Sequence[Drawn], ax: Axes, *, laws: bool) -> None:
    """One line a code: error of optimal decoding, and dotted the law of one step."""
    for colour, name in zip(COLOURS, dict.fromkeys(one.code for one in drawn), strict=False):
        own = [one for one in drawn if one.code == name]
        numbers = [one.stragglers for one in own]
        ax.plot(numbers, [_mean(one.optimal) for one in own], color=colour, label=name, marker=".")
        if laws:
            ax.plot(numbers, [one.law for one in own], color=colour, linestyle=":")
    ax.set_xlabel("silent workers")
    ax.set_ylabel("err")
    ax.set_ylim(bottom=0)
    ax.legend()
