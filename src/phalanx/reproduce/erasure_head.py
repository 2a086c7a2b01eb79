"""ErasureHead: loss against time, when the server stops waiting before everybody has finished."""

import csv
import gzip
from dataclasses import dataclass, replace
from functools import reduce
from math import ceil
from operator import add
from pathlib import Path
from statistics import fmean, median
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
_METHODS = (_UNCODED, _EXACT, _APPROXIMATE, _IGNORED)
_ALIKE, _HELD, _FAST = "alike", "a class with stragglers alone", "accelerated"
_TABLES = {
    "access": ("amazon_access.csv.gz", "ACTION"),
    "covtype": ("covtype_15k.csv.gz", "Cover_Type"),
}


@dataclass(frozen=True)
class ErasureHeads(Recipe):
    """Gradient descent with ErasureHead, with exact gradient coding, and without a code.

    Delays are exponential, 0.5 s on average, as in the paper. Partitions are alike; or the rarest
    class lies with a few workers alone that are slower throughout.
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
    seeds: int = sized(2, 5, 5)
    """Runs of each cell: other delays, other stragglers, another order of the samples."""
    delay_s: float = 0.5
    """Mean of the exponential delay per worker, in seconds."""
    gradient_s: float = 0.02
    """Seconds that a worker needs for the gradient of one partition."""
    slowdown: float = 10.0
    """How many times as long a persistent straggler takes."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method, by plain and accelerated descent, on each data set."""
        tables = {} if scope.size == "quick" else _TABLES
        sets: dict[str, DataSource] = {
            name: _table(scope.file(file), label) for name, (file, label) in tables.items()
        }
        size, copies = self.num_workers, self.copies
        codes = (
            (FractionalRepetition(size, 0), size),
            (FractionalRepetition(size, copies - 1), size),
            (ErasureHead(size, copies=copies), self.collected),
            (ErasureHead(size, copies=1), self.collected),
        )
        chosen = zip(_METHODS, codes, strict=True)
        axes: dict[str, Any] = {
            "data": sets or {"digits": Digits()},
            "partitions": {_ALIKE: {"persistent": False}, _HELD: {"persistent": True}},
            "descent": {"plain": {"accelerated": False}, _FAST: {"accelerated": True}},
            "method": {name: {"code": code, "enough": enough} for name, (code, enough) in chosen},
            "seed": range(self.seeds),
        }
        return grid(_descend, axes, {"recipe": self})

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Times to a loss, where stragglers hold what others do not, and where they do not."""
        timed = Records(self._timed(one, found) for one in found)
        return reduce(add, (self._part(kind, timed) for kind in (_HELD, _ALIKE)))

    def _timed(self, one: Record, found: Records) -> Record:
        """A record with the seconds that it took to the loss of exact descent at three quarters."""
        exact = found.where(**{**one.labels, "method": _UNCODED})[0]["losses"]
        target = exact[3 * len(exact) // 4]
        pairs = zip(one["times"], one["losses"], strict=True)
        taken = next((time for time, loss in pairs if loss <= target), None)
        above = 100 * (one["losses"][-1] / exact[-1] - 1)
        return replace(one, values={**one.values, "s to the loss": taken, "% above": above})

    def _part(self, kind: str, timed: Records) -> Findings:
        """What is found with partitions of one kind."""
        found, alike = timed.where(partitions=kind), timed.where(partitions=_ALIKE)
        uncoded, exact, near, ignored = (found.where(method=name) for name in _METHODS)
        times = [[one["s to the loss"] for one in runs] for runs in (near, exact, uncoded)]
        sooner = [
            one is not None and one < two < three for one, two, three in zip(*times, strict=True)
        ]
        delays, size = ShiftedExponential(0.0, self.delay_s), self.num_workers
        law = delays.expected_arrival(self.collected, size) / delays.expected_arrival(size, size)
        waits = [
            [one["s per iteration"] - copies * self.gradient_s for one in runs]
            for runs, copies in ((near, self.copies), (uncoded, 1))
        ]
        share = fmean(waits[0]) / fmean(waits[1])
        values = {
            "runs": len(near),
            "size": size,
            "collected": self.collected,
            "slowdown": self.slowdown,
            "sooner": sum(sooner),
            "reached": _reached(near),
            "ignored": _reached(ignored),
            "gain": [_gain(runs, near) for runs in (uncoded, exact, ignored)],
            "alike": _gain(alike.where(method=_IGNORED), alike.where(method=_APPROXIMATE)),
            "floor": [median(one["% above"] for one in runs) for runs in (near, ignored)],
            "share": share,
            "law": law,
            "steps": self.iterations,
            "data": " and ".join(map(str, found.labels("data"))),
        }
        held = kind == _HELD
        holds = (
            {"faster": sooner, "needed": None}
            if held
            else {"alike": sooner, "wait": [share <= 1.1 * law]}
        )
        summary = [
            _row(data, descent, name, found)
            for data in found.labels("data")
            for descent in found.labels("descent")
            for name in _METHODS
        ]
        lines = {
            run["method"]: (run["times"], run["losses"])
            for run in found
            if all(run[axis] == found[0][axis] for axis in ("data", "descent", "seed"))
        }
        tables, plots = {kind: summary}, {kind: lines}
        return report(
            self.told,
            holds | {f"floor, {kind}": None},
            values,
            tables,
            plots,
            "answer" if held else None,
        )


def _reached(runs: Records) -> int:
    return sum(one["s to the loss"] is not None for one in runs)


def _gain(runs: Records, near: Records) -> float | None:
    """How many times as long as ErasureHead they took, the median over pairs that arrived."""
    pairs = [
        (one["s to the loss"], other["s to the loss"])
        for one, other in zip(runs, near, strict=True)
    ]
    gains = [one / other for one, other in pairs if one is not None and other is not None]
    return median(gains) if gains else None


def _row(data: Any, descent: Any, method: str, found: Records) -> tuple[Any, ...]:
    runs = found.where(data=data, descent=descent, method=method)
    taken = [one["s to the loss"] for one in runs if one["s to the loss"] is not None]
    seconds, above = runs.mean("s per iteration"), runs.mean("% above")
    arrived = f"{len(taken)} of {len(runs)}"
    return (data, descent, method, seconds, median(taken) if taken else None, arrived, above)


def _descend(
    recipe: ErasureHeads,
    data: DataSource,
    persistent: bool,
    accelerated: bool,
    code: LinearCode,
    enough: int,
    seed: int,
) -> dict[str, Any]:
    """Logistic regression by gradient descent, on a simulated clock.

    The server waits for `enough` messages, or for fewer that decode without error.
    """
    inputs, targets, slow = _dealt(data, persistent, code.num_workers, seed)
    weights = before = torch.zeros(inputs.shape[1], targets.shape[1])
    size, shrink, labels = len(inputs), 1 / len(inputs), targets.argmax(dim=1)
    # Softmax is 1/2-smooth in its scores, so the loss is so in the weights:
    rate = 1 / (0.5 * torch.linalg.eigvalsh(inputs.T @ inputs)[-1].item() / size + shrink)
    clock, losses = _clock(recipe, code, enough, slow, seed), list[float]()
    scores = scored = inputs @ weights
    for step, arrived in enumerate(clock.arrived):
        ahead = step / (step + 3) if accelerated else 0.0  # Nesterov's momentum
        point, before = weights + ahead * (weights - before), weights
        residual = (scores + ahead * (scores - scored)).softmax(dim=1) - targets
        parts = (whole.tensor_split(code.num_workers) for whole in (inputs, residual))
        gradients = torch.stack([(x.T @ r).flatten() for x, r in zip(*parts, strict=True)])
        messages = code.encode_all([gradients * (code.num_workers / size)])
        decoded = code.decode(messages, arrived).gradient
        weights = point - rate * (decoded.view_as(point) + shrink * point)
        scores, scored = inputs @ weights, scores
        losses.append(cross_entropy(scores, labels).item())
    times = clock.duration_s.cumsum(0).tolist()
    return {"times": times, "losses": losses, "s per iteration": times[-1] / recipe.iterations}


def _clock(recipe: ErasureHeads, code: LinearCode, enough: int, slow: Tensor, seed: int) -> Rounds:
    """Who arrives in which step, and how long each takes."""
    complete = replace(code, max_error=0.0) if isinstance(code, ErasureHead) else code
    busy_s = int(code.assignment.sum(dim=1).max()) * recipe.gradient_s
    delays = ShiftedExponential(busy_s, recipe.delay_s)

    def ready(arrived: Tensor) -> bool:
        return int(arrived.sum()) >= enough or complete.can_decode(arrived)

    drawn = delays.draw(recipe.iterations, code.num_workers, generator("delays", seed))
    drawn[:, slow] *= recipe.slowdown
    return virtual_clock(drawn, UntilDecodable(ready))


def _dealt(
    data: DataSource, persistent: bool, num_workers: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All inputs, with a constant, all targets, one-hot, and the persistent stragglers.

    These are as many workers as the rarest class fills partitions, drawn at random; their own
    partitions hold all of it.
    """
    splits = load(data)
    size = len(splits.train)  # type: ignore[arg-type]
    source = generator("order", seed)
    inputs, targets = splits.train[torch.randperm(size, generator=source)]
    slow = torch.empty(0, dtype=torch.long)
    if persistent:
        rarest = targets == targets.bincount().argmin()
        slow = torch.randperm(num_workers, generator=source)[
            : ceil(rarest.sum() * num_workers / size)
        ]
        places = torch.arange(size).tensor_split(num_workers)
        others = [one for worker, one in enumerate(places) if worker not in slow.tolist()]
        order = torch.empty(size, dtype=torch.long)
        first = torch.cat([*(places[worker] for worker in slow.tolist()), *others])
        order[first] = (~rarest).long().argsort(stable=True)
        inputs, targets = inputs[order], targets[order]
    inputs = torch.cat([inputs.flatten(1), torch.ones(size, 1)], dim=1)
    return inputs, one_hot(targets, splits.num_classes).float(), slow


def _table(path: Path, label: str) -> CsvFile:
    """A table; columns of the access data are categories, hashed where there are many."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    categories = [name for name in header if name != label] if label == "ACTION" else []
    return CsvFile(path, label, categorical=categories, num_features=128)
