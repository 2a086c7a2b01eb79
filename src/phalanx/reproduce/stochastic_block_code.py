"""Stochastic block codes: good against bad luck, and with groups that an adversary must find."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
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
from phalanx.experiments import Cell, Record, Records, grid
from phalanx.randomness import generator
from phalanx.reporting.format import listed
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized

_REPETITION, _BERNOULLI = "fractional repetition", "Bernoulli"
_CLEAR, _HIDDEN = "block, clear groups", "block, hidden groups"
_CHOICES = {
    "random": "drawn uniformly",
    "groups known": "whole groups, by an adversary who knows them",
    "groups found": "whole groups, by an adversary who looks for them by spectral clustering",
    "greedy": "one by one, each the most painful loss",
}


@dataclass(frozen=True)
class StochasticBlockCodes(Recipe):
    """Decoding errors of repetition, block and Bernoulli codes against the number of stragglers.

    Stragglers are random, or chosen by adversaries who know the groups, look for them, or take the
    worst worker each time. The one-step decoder stands beside its law.
    """

    name: ClassVar[str] = "stochastic-block-code"

    num_workers: int = 100
    """Workers, and partitions (k)."""
    load: int = 5
    """Partitions that a worker computes, and workers in a group (s)."""
    inside: float = 0.7
    """Share of a worker's partitions that are of its own group, where groups are clear (p)."""
    stragglers: tuple[int, ...] = (5, 10, 20, 30, 40, 50)
    """Numbers of silent workers, growing."""
    draws: int = sized(100, 100, 1000)
    """Assignments and sets of stragglers to average over."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every code, all of the same expected load, under every choice of stragglers."""
        size, load = self.num_workers, self.load
        across = (1 - self.inside) * load / (size - load)
        codes = {
            _REPETITION: ErasureHead(size, copies=load, rescale=False),
            _CLEAR: StochasticBlockCode(size, cluster_size=load, inside=self.inside, across=across),
            _HIDDEN: StochasticBlockCode.recommend(size, load, load),
            _BERNOULLI: BernoulliGradientCode(size, expected_load=load),
        }
        names = {name: {"code": code, "called": name} for name, code in codes.items()}
        return grid(_errors, {"code": names, "choice": list(_CHOICES)}, {"recipe": self})

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Laws, orders of the codes, and whether groups are found, at a fifth of stragglers."""
        size = self.num_workers
        number = min(self.stragglers, key=lambda one: abs(one - size // 5))
        place, names = self.stragglers.index(number), (_REPETITION, _CLEAR, _BERNOULLI)

        def optimal(choice: str, codes: Sequence[str]) -> list[float]:
            wanted = (found.where(code=code, choice=choice)[0] for code in codes)
            return [statistics.fmean(one["optimal"][place]) for one in wanted]

        lucky, hostile = optimal("random", names), optimal("groups known", names)
        every = [str(code) for code in found.labels("code")]
        greedy = zip(optimal("greedy", every), every, strict=True)
        clear, hidden = (
            100 * found.mean("together", code=code, choice="groups found")
            for code in (_CLEAR, _HIDDEN)
        )
        lost, ordered = number - number % self.load, sorted(lucky) == lucky
        exact = math.isclose(hostile[0], lost, abs_tol=1e-6)
        values = {
            "number": number,
            "size": size,
            "lucky": lucky,
            "hostile": hostile,
            "in_order": (" < " if ordered else ", ").join(f"{one:.3g}" for one in lucky),
            "lost": lost,
            "clear": clear,
            "hidden": hidden,
            "guess": 100 * self.load / size,
            "greedy": listed([f"{value:.3g} ({code})" for value, code in greedy]),
        }
        random = found.where(choice="random")
        laws = [self._law(random.where(code=code)[0], place) for code in names]
        holds = {
            "chance": [ordered],
            "adversary": [exact and max(hostile[1:]) < hostile[0]],
            "groups": [clear > 80 and hidden < 20, clear > hidden],
            "greedy": None,
        }
        parts = [self._shown(choice, found.where(choice=choice)) for choice in _CHOICES]
        told = report(self.told, holds, values, answer="answer")
        return reduce(add, [*laws, told, *parts])

    def _law(self, one: Record, place: int) -> Findings:
        """Whether the one-step decoder's error is what its law says, up to chance."""
        law, errors = one["law"][place], one["one_step"][place]
        mean, deviation = statistics.fmean(errors), _standard_error(errors)
        values = {"code": one["code"], "number": self.stragglers[place], "size": self.num_workers}
        values |= {"law": law, "mean": mean, "deviation": deviation}
        return report(self.told, {"law": [abs(mean - law) <= 3 * deviation + 1e-9]}, values)

    def _shown(self, choice: str, found: Records) -> Findings:
        rows = [
            Record(
                {"code": one["code"], "stragglers": number},
                values={
                    "one step": statistics.fmean(simple),
                    "± standard error": _standard_error(simple),
                    "law": law if choice == "random" else None,
                    "optimal": statistics.fmean(best),
                },
            )
            for one in found
            for number, simple, law, best in zip(
                self.stragglers, one["one_step"], one["law"], one["optimal"], strict=True
            )
        ]
        lines = {one["code"]: [statistics.fmean(err) for err in one["optimal"]] for one in found}
        if choice == "random":
            lines |= {f"{one['code']}, law of one step": one["law"] for one in found}
        placed = {name: (self.stragglers, errors) for name, errors in lines.items()}
        values = {"choice": _CHOICES[choice]}
        return report(self.told, {}, values, {"errors": Records(rows)}, {"errors": placed})


def _errors(
    recipe: StochasticBlockCodes, called: str, code: ApproximateCode, choice: str
) -> dict[str, Any]:
    """Errors of both decoders by number of stragglers and draw, and what is known of them."""
    size, load, stragglers = recipe.num_workers, recipe.load, recipe.stragglers
    most, simple = max(stragglers), replace(code, decoding="one-step")
    laws = [size * simple.expected_squared_error(size - number) for number in stragglers]
    one_step, optimal = ([list[float]() for _ in stragglers] for _ in range(2))
    together = list[float]()
    for seed in range(recipe.draws):
        drawn = code
        if isinstance(code, StochasticBlockCode | BernoulliGradientCode):
            drawn = replace(code, seed=seed)
        groups, held = torch.arange(size) // load, drawn.assignment
        if isinstance(drawn, StochasticBlockCode):
            groups = drawn.clusters
        adversary: Any = RandomStragglers(most) if choice == "random" else GreedyStragglers(most)
        if choice == "groups found":
            spectral = SpectralStragglers(most, size // load)
            guessed = spectral.estimate(held, generator(seed, "spectral", called))
            together.append(_agreement(guessed, groups))
            groups = guessed
        if choice.startswith("groups"):
            adversary = BlockStragglers(most, groups.tolist())
        order = adversary.choose(held, generator(seed, "stragglers", called))
        for number, *errors in zip(stragglers, one_step, optimal, strict=True):
            arrived = torch.ones(size, dtype=torch.bool)
            arrived[order[:number]] = False
            for decoding, found in zip(("one-step", code.decoding), errors, strict=True):
                decoder = replace(drawn, decoding=decoding)
                share = decoder.coefficients(arrived) @ decoder.weights
                found.append(float((share - 1).square().sum()))
    mean = statistics.fmean(together) if together else None
    return {"one_step": one_step, "optimal": optimal, "law": laws, "together": mean}


def _agreement(found: Tensor, groups: Tensor) -> float:
    """The share of pairs of one group that are found to belong together."""
    together = groups[:, None] == groups[None, :]
    together.fill_diagonal_(False)
    return float((found[:, None] == found[None, :])[together].double().mean())


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
