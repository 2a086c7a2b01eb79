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
from torch.nn.functional import cross_entropy, one_hot

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
from phalanx.data import CsvFile, DataSource, Digits
from phalanx.experiments import Cell, Record, Records, grid, load, pivot
from phalanx.randomness import generator
from phalanx.reporting.format import listed
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized

_REPETITION, _BERNOULLI, _UNCODED = "fractional repetition", "Bernoulli", "uncoded"
_FILE, _LABEL = "covtype_15k.csv.gz", "Cover_Type"
_CHANCE, _KNOWN, _FOUND, _GREEDY = "by chance", "groups known", "groups found", "greedy"


@dataclass(frozen=True)
class StochasticBlockCodes(Recipe):
    """Errors of repetition, block and Bernoulli codes, and training, against silent workers.

    They are silent by chance, or chosen by adversaries who know the groups, look for them by
    spectral clustering, or take the worst worker each time. Block codes differ in how clear their
    groups are: on both sides of the threshold of community detection.
    """

    name: ClassVar[str] = "stochastic-block-code"

    num_workers: int = sized(100, 300, 300)
    """Workers, and partitions (k)."""
    load: int = sized(20, 30, 30)
    """Partitions that a worker computes, and workers in a group (s)."""
    signals: tuple[float, ...] = (0.25, 0.5, 0.95, 2.0, 4.0, 8.0)
    """Ratios of signal to noise of the groups, `StochasticBlockCode.signal_to_noise`, growing."""
    silent: float = 0.2
    """Share of the workers that are silent."""
    draws: int = sized(10, 40, 400)
    """Assignments and sets of stragglers to average over."""
    steps: int = sized(50, 200, 1000)
    """Steps of gradient descent, always with the same workers silent."""
    runs: int = sized(1, 3, 10)
    """Trainings of each kind, with assignments and orders of their own."""

    @property
    def num_silent(self) -> int:
        """Workers that are silent."""
        return round(self.silent * self.num_workers)

    def cells(self, scope: Scope) -> list[Cell]:
        """Every code, all of the same expected load, under every choice of stragglers."""
        size, load = self.num_workers, self.load
        codes: dict[str, ApproximateCode] = {
            _REPETITION: ErasureHead(size, copies=load, rescale=False),
            _BERNOULLI: BernoulliGradientCode(size, expected_load=load),
        }
        for signal in self.signals:
            code = StochasticBlockCode.recommend(size, load, load, signal_to_noise=signal)
            codes[_block(signal)] = code
        names: dict[str, Any] = {name: {"code": code} for name, code in codes.items()}
        hidden = _block(max(one for one in self.signals if one < 1))
        trained = {one: names[one] for one in (_REPETITION, hidden, _BERNOULLI)}
        trained[_UNCODED] = {"code": ErasureHead(size, copies=1, rescale=False)}
        source: DataSource = Digits()
        if scope.size != "quick":
            source = CsvFile(scope.file(_FILE), _LABEL)
        orders = {"by class": {"by_class": True}, "shuffled": {"by_class": False}}
        choices = [_CHANCE, _KNOWN, _FOUND, _GREEDY]
        training: dict[str, Any] = {
            "part": {"training": {}},
            "code": trained,
            "order": orders,
            "choice": choices,
        }
        whole: dict[str, Any] = {"part": {"whole": {}}, "order": orders}
        given = {"recipe": self, "data": source}
        return [
            *grid(_errors, {"part": {"errors": {}}, "code": names, "choice": choices}, given),
            *grid(_train, training, given),
            *grid(_train, whole, given | {"code": trained[_UNCODED]["code"], "choice": None}),
        ]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Laws, the order of the codes, what groups betray, and what training loses."""
        hidden = _block(max(one for one in self.signals if one < 1))
        errors, training = found.where(part="errors"), found.where(part="training")

        def left(code: str, choice: str) -> list[float]:
            return list(errors.where(code=code, choice=choice)[0]["optimal"])

        below = [_block(one) for one in self.signals if one < 1]
        above = [_block(one) for one in self.signals if one > 1]
        shown = (_REPETITION, hidden, _BERNOULLI)
        lucky = [statistics.fmean(left(one, _CHANCE)) for one in shown]
        hostile = [statistics.fmean(left(one, _KNOWN)) for one in shown]
        seen = {
            one: _excess(errors.where(code=one, choice=_FOUND)[0]["agreement"])
            for one in below + above
        }
        gain = {one: _excess(left(one, _FOUND), left(one, _CHANCE)) for one in below}
        short = {one: _excess(left(one, _KNOWN), left(one, _FOUND)) for one in above}
        worst = {
            (one, order): min(
                training.mean("accuracy", code=one, order=order, choice=choice)
                for choice in (_KNOWN, _FOUND, _GREEDY)
            )
            for one in (*shown, _UNCODED)
            for order in ("by class", "shuffled")
        }
        gained = [
            f"partitions {order}"
            for order in ("by class", "shuffled")
            if worst[hidden, order] > max(worst[_REPETITION, order], worst[_UNCODED, order])
        ]
        values = {
            "number": self.num_silent,
            "size": self.num_workers,
            "lucky": lucky,
            "hostile": hostile,
            "agreement": {
                name: f"{mean:.2f} ± {error:.1g}" for name, (mean, error) in seen.items()
            },
            "gain": {name: f"{mean:.2g} ± {error:.1g}" for name, (mean, error) in gain.items()},
            "short": {name: f"{mean:.2g} ± {error:.1g}" for name, (mean, error) in short.items()},
            "greedy": {one: statistics.fmean(left(one, _GREEDY)) for one in shown},
            "worst": statistics.fmean(left(hidden, _GREEDY)),
            "kept": listed(gained) if gained else "neither order of the partitions",
            "whole": {one["order"]: one["accuracy"] for one in found.where(part="whole")},
            "sorted": {one: worst[one, "by class"] for one in (*shown, _UNCODED)},
            "mixed": {one: worst[one, "shuffled"] for one in (*shown, _UNCODED)},
        }
        holds = {
            "chance": [lucky[1] < lucky[2], lucky[1] < self.num_silent],
            "adversary": [max(hostile[1:]) < hostile[0]],
            "threshold": [
                *(seen[one][0] <= 3 * seen[one][1] for one in below),
                *(seen[one][0] > 3 * seen[one][1] for one in above),
            ],
            "hard": [
                *(mean <= 3 * error for mean, error in gain.values()),
                *(mean <= 3 * error for mean, error in short.values()),
            ],
            "greedy": [
                mean <= 3 * error
                for mean, error in [_excess(left(hidden, _GREEDY), left(hidden, _CHANCE))]
            ],
            "training": [
                worst[hidden, order] > worst[other, order]
                for order in ("by class", "shuffled")
                for other in (_REPETITION, _UNCODED)
            ],
        }
        laws = [self._law(errors.where(code=one, choice=_CHANCE)[0]) for one in shown]
        tables = {
            "errors": pivot(errors, "code", "choice", lambda one: statistics.fmean(one["optimal"])),
            "training": pivot(training, "code", ["order", "choice"], "accuracy"),
        }
        lines = {
            choice: (
                self.signals,
                [statistics.fmean(left(_block(s), choice)) for s in self.signals],
            )
            for choice in (_CHANCE, _KNOWN, _FOUND, _GREEDY)
        }
        told = report(self.told, holds, values, tables, {"errors": lines}, answer="answer")
        return reduce(add, [told, *laws])

    def _law(self, one: Record) -> Findings:
        """Whether the one-step decoder's error is what its law says, up to chance."""
        mean, deviation = statistics.fmean(one["one_step"]), _standard_error(one["one_step"])
        values = {"code": one["code"], "number": self.num_silent, "size": self.num_workers}
        values |= {"law": one["law"], "mean": mean, "deviation": deviation}
        return report(self.told, {"law": [abs(mean - one["law"]) <= 3 * deviation + 1e-9]}, values)


def _block(signal: float) -> str:
    return f"block, signal {signal:g}"


def _silenced(
    recipe: StochasticBlockCodes, code: ApproximateCode, choice: str, seed: int
) -> tuple[ApproximateCode, Tensor, float | None]:
    """A code as drawn, who arrives, and how well its groups were found, if they were looked for."""
    size, number = recipe.num_workers, recipe.num_silent
    if isinstance(code, StochasticBlockCode | BernoulliGradientCode):
        code = replace(code, seed=seed)
    agreement, held = None, code.assignment
    groups = torch.arange(size) // recipe.load
    if isinstance(code, StochasticBlockCode):
        groups = code.clusters
    if choice == _FOUND:
        # Imported where it is used: it takes as long to import as torch.
        from sklearn.metrics import adjusted_rand_score

        spectral = SpectralStragglers(number, size // recipe.load)
        guessed = spectral.estimate(held, generator(seed, "spectral"))
        agreement, groups = float(adjusted_rand_score(groups.numpy(), guessed.numpy())), guessed
    adversary: Any = BlockStragglers(number, groups.tolist())
    if choice in (_CHANCE, _GREEDY):
        adversary = (RandomStragglers if choice == _CHANCE else GreedyStragglers)(number)
    arrived = torch.ones(size, dtype=torch.bool)
    arrived[adversary.choose(held, generator(seed, "stragglers"))] = False
    return code, arrived, agreement


def _errors(
    recipe: StochasticBlockCodes, data: DataSource, code: ApproximateCode, choice: str
) -> dict[str, Any]:
    """Errors of both decoders by draw, and what is known of them."""
    found: dict[str, list[float]] = {"one_step": [], "optimal": []}
    agreements = []
    for seed in range(recipe.draws):
        drawn, arrived, agreement = _silenced(recipe, code, choice, seed)
        agreements.append(agreement or 0.0)
        for decoding, errors in zip(("one-step", "optimal"), found.values(), strict=True):
            decoder: Any = replace(drawn, decoding=decoding)  # type: ignore[arg-type]
            share = decoder.coefficients(arrived) @ decoder.weights
            errors.append(float((share - 1).square().sum()))
    arrivals = recipe.num_workers - recipe.num_silent
    law = replace(code, decoding="one-step").expected_squared_error(arrivals)
    return {**found, "law": recipe.num_workers * law, "agreement": agreements}


def _train(
    recipe: StochasticBlockCodes,
    data: DataSource,
    code: ApproximateCode,
    by_class: bool,
    choice: str | None,
) -> dict[str, Any]:
    """Softmax regression by gradient descent, the same workers silent in every step."""
    splits, size = load(data), recipe.num_workers
    (x, y), (x_test, y_test) = (
        part[torch.arange(len(part))]  # type: ignore[arg-type]
        for part in (splits.train, splits.test)
    )
    x, x_test = (torch.cat([a.flatten(1), torch.ones(len(a), 1)], 1).double() for a in (x, x_test))
    smoothness = 0.5 * torch.linalg.matrix_norm(x, ord=2).item() ** 2 / len(x)
    accuracies, losses = [], []
    for seed in range(recipe.runs):
        order = torch.randperm(len(x), generator=generator(seed, "order"))
        order = order[: len(x) // size * size]
        if by_class:
            order = order[y[order].argsort(stable=True)]
        inputs, targets = (part[order].unflatten(0, (size, -1)) for part in (x, y))
        labels = one_hot(targets, splits.num_classes).double()
        arrived = torch.ones(size, dtype=torch.bool)
        drawn = code
        if choice is not None:
            drawn, arrived, _ = _silenced(recipe, code, choice, seed)
        coefficients = drawn.coefficients(arrived)
        weights = torch.zeros(x.shape[1], splits.num_classes, dtype=torch.float64)
        for _ in range(recipe.steps):
            residual = (inputs @ weights).softmax(dim=2) - labels
            gradients = torch.einsum("pnd,pnc->pdc", inputs, residual).flatten(1)
            decoded = coefficients @ (drawn.weights @ gradients) / len(order)
            weights = weights - decoded.view_as(weights) / smoothness
        scores = x_test @ weights
        accuracies.append((scores.argmax(dim=1) == y_test).double().mean().item())
        losses.append(cross_entropy(scores, y_test).item())
    return {"accuracy": statistics.fmean(accuracies), "loss": statistics.fmean(losses)}


def _excess(ours: Sequence[float], others: Sequence[float] | None = None) -> tuple[float, float]:
    """By how much one is above another on average, draw by draw, or above 0; its standard error."""
    apart = [one - other for one, other in zip(ours, others or [0.0] * len(ours), strict=True)]
    return statistics.fmean(apart), _standard_error(apart)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
