"""ErasureHead: loss against time, when the server stops waiting before everybody has finished."""

import csv
import gzip
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from phalanx.coding import ErasureHead, FractionalRepetition, LinearCode
from phalanx.data import CsvFile, DataSource, Digits
from phalanx.experiments import Cell, Record, Records, grid, load
from phalanx.randomness import generator
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized
from phalanx.stragglers import Rounds, ShiftedExponential, UntilDecodable, virtual_clock

_UNCODED, _EXACT = "uncoded", "exact gradient coding"
_APPROXIMATE, _IGNORED = "ErasureHead", "uncoded, stragglers ignored"
_SORTED = "digits sorted by class"
_FILE = "amazon_access.csv.gz"
_LABEL = "ACTION"


@dataclass(frozen=True)
class ErasureHeads(Recipe):
    """Gradient descent with ErasureHead, with exact gradient coding, and without a code.

    Delays are exponential, 0.5 s on average, as in the paper.
    """

    name: ClassVar[str] = "erasurehead"

    num_workers: int = 30
    """Workers, and partitions of the samples."""
    copies: int = 3
    """Partitions that a worker computes under a code (s)."""
    collected: int = 15
    """Messages that the server waits for under ErasureHead; fewer if they cover all groups."""
    iterations: int = sized(40, 100, 500)
    """Steps of gradient descent."""
    learning_rate: float = 1.0
    """Of gradient descent, relative to the inverse of the loss's smoothness."""
    delay_s: float = 0.5
    """Mean of the exponential delay per worker, in seconds."""
    gradient_s: float = 0.02
    """Seconds that a worker needs for the gradient of one partition."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method on the digits, and on the access data where they are given."""
        size, copies = self.num_workers, self.copies
        sets: dict[str, dict[str, Any]] = {
            "digits": {"data": Digits(), "by_class": False},
            _SORTED: {"data": Digits(), "by_class": True},
        }
        if scope.size != "quick":
            sets["access"] = {"data": _access(scope.file(_FILE)), "by_class": False}
        codes = {
            _UNCODED: (FractionalRepetition(size, 0), size),
            _EXACT: (FractionalRepetition(size, copies - 1), size),
            _APPROXIMATE: (ErasureHead(size, copies=copies), self.collected),
            _IGNORED: (ErasureHead(size, copies=1), self.collected),
        }
        methods = {name: {"code": code, "enough": least} for name, (code, least) in codes.items()}
        return grid(_descend, {"data": sets, "method": methods}, {"recipe": self})

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Times to a loss, waits, and what is left of the loss, for each data set."""
        names = sorted(map(str, found.labels("data")), key="access".__ne__)  # it answers first
        return reduce(add, (self._part(name, found.where(data=name)) for name in names))

    def _part(self, name: str, runs: Records) -> Findings:
        """What is found on one data set."""
        methods, size = (_APPROXIMATE, _EXACT, _UNCODED, _IGNORED), self.num_workers
        near, exact, uncoded, ignored = (runs.where(method=one)[0] for one in methods)
        losses, delays = uncoded["losses"], ShiftedExponential(0.0, self.delay_s)
        target = losses[3 * len(losses) // 4]  # of exact descent
        times = [_time_to(target, one) for one in (near, exact, uncoded)]
        whole = uncoded["s per iteration"] - self.gradient_s
        share = (near["s per iteration"] - self.copies * self.gradient_s) / whole
        law = delays.expected_arrival(self.collected, size) / delays.expected_arrival(size, size)
        other = f" and {_FILE}, categories hashed" if name == "access" else ""
        values = {
            "name": name,
            "target": target,
            "size": size,
            "collected": self.collected,
            "steps": len(losses),
            "times": ", ".join("never" if time is None else f"{time:.3g} s" for time in times),
            "gain": _ratio(times[-1], times[0]),
            "data": f"scikit-learn's digits{other}",
            "share": share,
            "law": law,
            "floor": 100 * (near["last loss"] / uncoded["last loss"] - 1),
            "ignored": 100 * (ignored["last loss"] / uncoded["last loss"] - 1),
        }
        ordered = None not in times and times == sorted(time or 0.0 for time in times)
        holds = {"order": [ordered], "wait": [share <= 1.1 * law], "floor": None}
        timed = []
        for run in runs:
            taken = _time_to(target, run)
            more = {"s to the loss": taken, "speed-up": _ratio(times[-1], taken)}
            timed.append(replace(run, values={**run.values, **more}))
        lines = {run["method"]: (run["times"], run["losses"]) for run in runs}
        answer = "answer" if times[0] else "never"
        return report(
            self.told, holds, values, {"time": Records(timed)}, {"loss": lines}, answer=answer
        )


def _time_to(target: float, run: Record) -> float | None:
    """Simulated seconds until the loss was first at most this; None if it never was."""
    pairs = zip(run["times"], run["losses"], strict=True)
    return next((time for time, loss in pairs if loss <= target), None)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def _descend(
    recipe: ErasureHeads,
    data: DataSource,
    by_class: bool,
    code: LinearCode,
    enough: int,
) -> dict[str, Any]:
    """Logistic regression by gradient descent, on a simulated clock.

    The server waits for `enough` messages, or for fewer that decode without error.
    """
    inputs, targets = _whole(data, by_class)
    weights = torch.zeros(inputs.shape[1], targets.shape[1])
    size, shrink, labels = len(inputs), 1 / len(inputs), targets.argmax(dim=1)
    # Softmax is 1/2-smooth in its scores, so the loss is so in the weights:
    smoothness = 0.5 * torch.linalg.matrix_norm(inputs, ord=2).item() ** 2 / size
    rate, scale = recipe.learning_rate / (smoothness + shrink), code.num_workers / size
    clock, losses, errors = _clock(recipe, code, enough), list[float](), list[float]()
    for arrived in clock.arrived:
        residual = (inputs @ weights).softmax(dim=1) - targets
        parts = (whole.tensor_split(code.num_workers) for whole in (inputs, residual))
        gradients = [scale * (x.T @ r).flatten() for x, r in zip(*parts, strict=True)]
        decoded = code.decode(code.encode_all([torch.stack(gradients)]), arrived)
        weights = weights - rate * (decoded.gradient.view_as(weights) + shrink * weights)
        losses.append(cross_entropy(inputs @ weights, labels).item())
        errors.append(decoded.error)
    times = clock.duration_s.cumsum(0).tolist()
    found = {"times": times, "losses": losses, "s per iteration": times[-1] / recipe.iterations}
    return found | {"last loss": losses[-1], "mean error": fmean(errors)}


def _clock(recipe: ErasureHeads, code: LinearCode, enough: int) -> Rounds:
    """Who arrives in which step, and how long each takes."""
    complete = replace(code, max_error=0.0) if isinstance(code, ErasureHead) else code
    busy_s = int(code.assignment.sum(dim=1).max()) * recipe.gradient_s
    delays = ShiftedExponential(busy_s, recipe.delay_s)

    def ready(arrived: Tensor) -> bool:
        return int(arrived.sum()) >= enough or complete.can_decode(arrived)

    drawn = delays.draw(recipe.iterations, code.num_workers, generator("delays"))
    return virtual_clock(drawn, UntilDecodable(ready))


def _whole(data: DataSource, by_class: bool) -> tuple[Tensor, Tensor]:
    """All inputs, with a constant, and all targets, one-hot, in an order drawn once."""
    splits = load(data)
    size = len(splits.train)  # type: ignore[arg-type]
    inputs, targets = splits.train[torch.randperm(size, generator=generator("order"))]
    if by_class:
        order = targets.argsort(stable=True)
        inputs, targets = inputs[order], targets[order]
    inputs = torch.cat([inputs.flatten(1), torch.ones(size, 1)], dim=1)
    return inputs, one_hot(targets, splits.num_classes).float()


def _access(path: Path) -> CsvFile:
    """Who was granted access to what: ten columns of categories, hashed where there are many."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    columns = [column for column in header if column != _LABEL]
    return CsvFile(path, _LABEL, categorical=columns, num_features=512)
