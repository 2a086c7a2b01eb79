"""DP-TopAgg against DP-SGD: votes on the largest values in place of clipping, at equal epsilon."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

from phalanx.computations import ClippedGradient, TopAggGradient
from phalanx.data import CsvFile, DataSource
from phalanx.experiments import Cell, Records, grid, tuned
from phalanx.experiments.runs import MakeModel
from phalanx.models import MLP, Softmax
from phalanx.reproduce.base import Findings, Measure, Recipe, Scope, report, sized, to_points
from phalanx.reproduce.private_training import FixedFeatures, private_run

_CLIPPED = "DP-SGD"
_MODES: Mapping[str, Any] = {"sign": "sign", "stochastic sign": "stochastic", "values": "values"}
_small = partial(MLP, hidden=(32,))


class _Task(NamedTuple):
    """What is learnt."""

    data: DataSource
    model: MakeModel
    searched: bool = False
    """Whether it is where votes might win, and does not count for the paper's claim."""


@dataclass(frozen=True)
class TopAggRecipe(Recipe):
    """Three kinds of votes and clipping, with equal budget and steps, each with its best settings.

    A setting is a learning rate, and the norm of clipping or the share of values that are voted on;
    every method has as many, and takes the one that is best with the first seed on held-out data.

    Source: Wang, Wu, Long, Rimanic, Zhang and Li, "DataLens: Scalable Privacy Preserving Training
    via Gradient Compression and Aggregation", CCS 2021, section on DP-SGD.
    """

    name: ClassVar[str] = "topagg"
    epsilons: tuple[float, ...] = sized((8.0,), (1.0, 4.0), (0.5, 1.0, 2.0, 4.0, 8.0))
    """Budgets."""
    delta: float = 1e-5
    """Of every budget."""
    steps: int = sized(20, 80, 400)
    """Steps of a run."""
    batch_size: int = sized(100, 250, 500)
    """Samples of a step, on average."""
    samples: int = sized(1000, 8000, 50_000)
    """Training samples, of data sets that have so many."""
    seeds: int = sized(1, 3, 5)
    """Runs with the chosen settings."""
    rates: tuple[float, ...] = sized((2.0, 8.0), (0.5, 2.0, 8.0), (0.25, 0.5, 1.0, 2.0, 4.0, 8.0))
    """Learning rates, for votes and clipped gradients of norm 1."""
    norms: tuple[float, ...] = sized((0.3,), (0.1, 0.3, 1.0), (0.03, 0.1, 0.3, 1.0, 3.0))
    """Norms of clipping."""
    shares: tuple[float, ...] = sized((0.1,), (0.01, 0.1, 1.0), (0.003, 0.01, 0.1, 0.3, 1.0))
    """Shares of the values that are voted on."""

    def tasks(self, scope: Scope) -> dict[str, _Task]:
        """What is learnt: images, a table, and gradients with heavy tails or few values."""
        sizes: Any = ("default", "full")
        mnist = scope.images(["mnist.npz"], "MNIST", sizes).source
        if scope.size == "quick":
            heavy = _Task(FixedFeatures(mnist, noise=0.1), _small, searched=True)
            return {"digits": _Task(FixedFeatures(mnist), _small), "heavy tails": heavy}
        cifar = scope.images(["cifar10_12k.npz", "cifar10.npz"], "CIFAR-10", sizes).source
        table = CsvFile(str(scope.file("adult.csv.gz")), label="income")
        words = CsvFile(str(scope.file("sst2.csv.gz")), label="label", text=["text"])
        return {
            "MNIST": _Task(FixedFeatures(mnist, pooling=2), _small),
            "CIFAR-10": _Task(FixedFeatures(cifar, filters=128), Softmax),
            "adult": _Task(table, _small),
            "heavy tails": _Task(FixedFeatures(mnist, pooling=2, noise=0.1), _small, searched=True),
            "words": _Task(words, Softmax, searched=True),
        }

    def cells(self, scope: Scope) -> list[Cell]:
        """Every data set and budget with every method and setting."""
        computed: dict[str, list[tuple[float, Any]]]
        computed = {_CLIPPED: [(norm, ClippedGradient(norm)) for norm in self.norms]}
        for mode, quantise in _MODES.items():
            computed[mode] = [(one, TopAggGradient(one, quantise)) for one in self.shares]
        sizes = ("delta", "steps", "batch_size", "samples")
        fixed = {size: getattr(self, size) for size in sizes}
        cells = list[Cell]()
        for name, task in self.tasks(scope).items():
            for method, bounds in computed.items():
                settings = {
                    f"{bound:g}, rate {rate:g}": {"compute": compute, "rate": rate}
                    for bound, compute in bounds
                    for rate in self.rates
                }
                axes: dict[str, Any] = {
                    "task": {name: {"data": task.data, "model": task.model}},
                    "method": {method: {}},
                    "epsilon": self.epsilons,
                    "setting": settings,
                    "seed": range(self.seeds),
                }
                cells += grid(private_run, axes, fixed)
        return cells

    def measure(self, scope: Scope, run: Measure) -> Records:
        """The first seed chooses the setting of each method."""
        return tuned(self.cells(scope), "setting", "error", run)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """In how many cells votes of one kind are above clipping, by more than seeds differ."""
        tasks, best = self.tasks(scope), found.where(tuned=True)
        every = [(task, epsilon) for task in tasks for epsilon in self.epsilons]
        reached: dict[tuple[str, float, str], list[float]] = {
            (*cell, method): [
                one["test_accuracy"]
                for one in best.where(task=cell[0], epsilon=cell[1], method=method)
            ]
            for cell in every
            for method in (_CLIPPED, *_MODES)
        }
        counted = [cell for cell in every if not tasks[cell[0]].searched]
        searched = [cell for cell in every if tasks[cell[0]].searched]

        def wins(cell: tuple[str, float], one: str, other: str) -> bool:
            return min(reached[*cell, one]) > max(reached[*cell, other])

        def ahead(mode: str) -> tuple[int, float]:
            gaps = [
                fmean(reached[*cell, mode]) - fmean(reached[*cell, _CLIPPED]) for cell in counted
            ]
            return sum(wins(cell, mode, _CLIPPED) for cell in counted), fmean(gaps)

        mode = max(_MODES, key=ahead)
        gap = {one: 100 * ahead(one)[1] for one in _MODES}
        won = {one: ahead(one)[0] for one in _MODES}
        lost = sum(wins(cell, _CLIPPED, mode) for cell in counted)
        elsewhere = [wins(cell, mode, _CLIPPED) for cell in searched]
        most = won[mode] > len(counted) / 2
        values: dict[str, Any] = {"recipe": self, "mode": mode, "gap": gap, "won": won}
        values |= {
            "lost": lost,
            "best_won": won[mode],
            "cells": len(counted),
            "elsewhere": sum(elsewhere),
        }
        values |= {"searched": len(searched), "tasks": ", ".join(tasks), "best_gap": gap[mode]}
        above = [(*cell, one) for cell in every for one in _MODES if wins(cell, one, _CLIPPED)]
        where = ", ".join(f"{task} at {epsilon:g} ({one})" for task, epsilon, one in above)
        values["where"] = where or "nowhere"
        rates = (min(self.rates), max(self.rates))
        values["edge"] = sum(one["rate"] in rates for one in best)
        values["runs"] = len(best)
        holds = {"utility": [most], "elsewhere": [sum(elsewhere) > len(searched) / 2]}
        rows = [
            (
                *cell,
                *(to_points(reached[*cell, one]) for one in (_CLIPPED, *_MODES)),
                round(100 * (max(spread) - min(spread)), 1),
            )
            for cell in every
            for spread in [reached[*cell, _CLIPPED]]
        ]
        tables = {"accuracy": rows, "shares": self._shares(found, tasks)}
        return report(self.told, holds, values, tables, answer="answer" if most else "baseline")

    def _shares(self, found: Records, tasks: Mapping[str, _Task]) -> list[tuple[str, str, str]]:
        """By share, accuracy on held-out data with the best learning rate: with the first seed."""
        rows = []
        for task in tasks:
            for mode in _MODES:
                tried = found.where(task=task, method=mode, epsilon=max(self.epsilons), seed=0)
                least = [
                    min(one["error"] for one in tried if one["bound"] == share)
                    for share in self.shares
                ]
                told = " / ".join(f"{100 * (1 - error):.1f}" for error in least)
                rows.append((task, mode, told))
        return rows
