"""ErasureHead: loss against time, when the server stops waiting before everybody has finished."""

import csv
import gzip
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from phalanx.coding import ErasureHead, FractionalRepetition, LinearCode
from phalanx.data import CsvFile, DataSource, Digits
from phalanx.experiments import Cell, Record, Records, grid, line_plot, load
from phalanx.randomness import generator
from phalanx.reporting import Plot, Table
from phalanx.reproduce.base import Claim, Findings, Recipe, Scope, claims, published
from phalanx.stragglers import Rounds, ShiftedExponential, UntilDecodable, virtual_clock

_UNCODED, _EXACT = "uncoded", "exact gradient coding"
_APPROXIMATE, _IGNORED = "ErasureHead", "uncoded, stragglers ignored"
_SORTED = "digits sorted by class"
_FILE = "amazon_access.csv.gz"
_LABEL = "ACTION"
_TOLD = published("erasurehead")


@dataclass(frozen=True)
class ErasureHeads(Recipe):
    """Gradient descent with ErasureHead, with exact gradient coding, and without a code.

    Delays are exponential, 0.5 s on average, as in the paper. Cost: in quick mode a few seconds.
    """

    name: ClassVar[str] = "erasurehead"
    paper: ClassVar[str] = _TOLD["paper"]

    num_workers: int = 30
    """Workers, and partitions of the samples."""
    copies: int = 3
    """Partitions that a worker computes under a code (s)."""
    collected: int = 15
    """Messages that the server waits for under ErasureHead; fewer if they cover all groups."""
    iterations: int | None = None
    """Steps of gradient descent; by default 100, or 500 in full."""
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
        path = scope.file([_FILE])
        if path is not None and path.name == _FILE:
            sets["access"] = {"data": _access(path), "by_class": False}
        codes = {
            _UNCODED: (FractionalRepetition(size, 0), size),
            _EXACT: (FractionalRepetition(size, copies - 1), size),
            _APPROXIMATE: (ErasureHead(size, copies=copies), self.collected),
            _IGNORED: (ErasureHead(size, copies=1), self.collected),
        }
        methods = {name: {"code": code, "enough": least} for name, (code, least) in codes.items()}
        fixed = {"sizes": self, "steps": self.iterations or (500 if scope.full else 100)}
        return grid(_descend, {"data": sets, "method": methods}, fixed)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Times to a loss, waits, and what is left of the loss, for each data set."""
        by_set = {str(name): found.where(data=name) for name in found.labels("data")}
        values = {name: self._values(name, runs) for name, runs in by_set.items()}
        given, main = "access" in by_set, values["access" if "access" in by_set else "digits"]
        more = (f" (name a folder that holds {_FILE} for more)", f" and {_FILE}, categories hashed")
        reached = _TOLD["answer" if main["gain"] else "never"]
        return Findings(
            answer=reached.format(**main),
            claims=[claim for one in values.values() for claim in _claims(one)],
            tables=[_table(name, runs) for name, runs in by_set.items()],
            plots=[_plot(name, runs) for name, runs in by_set.items()],
            notes=[f"Data: scikit-learn's digits{more[given]}.", *_TOLD["notes"]],
        )

    def _values(self, name: str, runs: Records) -> dict[str, Any]:
        """What is said of a data set."""
        methods, size = (_APPROXIMATE, _EXACT, _UNCODED, _IGNORED), self.num_workers
        near, exact, uncoded, ignored = (runs.where(method=one)[0] for one in methods)
        target, delays = _target(runs), ShiftedExponential(0.0, self.delay_s)
        times = [_time_to(target, one) for one in (near, exact, uncoded)]
        whole = uncoded["seconds"] - self.gradient_s
        return {
            "name": name,
            "target": target,
            "size": size,
            "collected": self.collected,
            "steps": len(near["losses"]),
            "times": ", ".join("never" if time is None else f"{time:.3g} s" for time in times),
            "ordered": None not in times and times == sorted(time or 0.0 for time in times),
            "gain": times[-1] / times[0] if times[0] and times[-1] else None,
            "share": (near["seconds"] - self.copies * self.gradient_s) / whole,
            "law": delays.expected_arrival(self.collected, size)
            / delays.expected_arrival(size, size),
            "floor": 100 * (near["last_loss"] / uncoded["last_loss"] - 1),
            "ignored": 100 * (ignored["last_loss"] / uncoded["last_loss"] - 1),
        }


def _claims(values: dict[str, Any]) -> list[Claim]:
    sooner = [values["share"] <= 1.1 * values["law"]]
    holds = {"order": [values["ordered"]], "wait": sooner, "floor": None}
    return claims(_TOLD, holds, values)


def _target(runs: Records) -> float:
    """The loss after three quarters of the iterations of exact descent."""
    losses: list[float] = runs.where(method=_UNCODED)[0]["losses"]
    return losses[3 * len(losses) // 4]


def _time_to(target: float, run: Record) -> float | None:
    """Simulated seconds until the loss was first at most this; None if it never was."""
    pairs = zip(run["times"], run["losses"], strict=True)
    return next((time for time, loss in pairs if loss <= target), None)


def _table(name: str, runs: Records) -> Table:
    target = _target(runs)
    slowest = _time_to(target, runs.where(method=_UNCODED)[0])

    def speed_up(run: Record) -> float | None:
        taken = _time_to(target, run)
        return slowest / taken if slowest and taken else None

    return runs.table(
        f"Time to a loss: {name}",
        f"Simulated seconds until the training loss is at most {target:.4g}.",
        {
            "method": "method",
            "s per iteration": "seconds",
            "s to the loss": partial(_time_to, target),
            "speed-up": speed_up,
            "last loss": "last_loss",
            "mean error": "error",
        },
    )


def _plot(name: str, runs: Records) -> Plot:
    caption = "On the simulated clock; every method makes the same number of iterations."
    lines = {run["method"]: (run["times"], run["losses"]) for run in runs}
    axes = ("simulated seconds", "training loss (log scale)")
    return line_plot(f"Training loss against time: {name}", caption, lines, *axes, log="y")


def _descend(
    sizes: ErasureHeads,
    data: DataSource,
    by_class: bool,
    code: LinearCode,
    enough: int,
    steps: int,
) -> dict[str, Any]:
    """Logistic regression by gradient descent, on a simulated clock.

    The server waits for `enough` messages, or for fewer that decode without error.
    """
    inputs, targets = _whole(data, by_class)
    weights = torch.zeros(inputs.shape[1], targets.shape[1])
    size, shrink, labels = len(inputs), 1 / len(inputs), targets.argmax(dim=1)
    # Softmax is 1/2-smooth in its scores, so the loss is so in the weights:
    smoothness = 0.5 * torch.linalg.matrix_norm(inputs, ord=2).item() ** 2 / size
    rate, scale = sizes.learning_rate / (smoothness + shrink), code.num_workers / size
    clock, losses, errors = _clock(sizes, code, enough, steps), list[float](), list[float]()
    for arrived in clock.arrived:
        residual = (inputs @ weights).softmax(dim=1) - targets
        parts = (whole.tensor_split(code.num_workers) for whole in (inputs, residual))
        gradients = [scale * (x.T @ r).flatten() for x, r in zip(*parts, strict=True)]
        decoded = code.decode(code.encode_all([torch.stack(gradients)]), arrived)
        weights = weights - rate * (decoded.gradient.view_as(weights) + shrink * weights)
        losses.append(cross_entropy(inputs @ weights, labels).item())
        errors.append(decoded.error)
    times = clock.duration_s.cumsum(0).tolist()
    found = {"times": times, "losses": losses, "seconds": times[-1] / steps}
    return found | {"last_loss": losses[-1], "error": fmean(errors)}


def _clock(sizes: ErasureHeads, code: LinearCode, enough: int, steps: int) -> Rounds:
    """Who arrives in which step, and how long each takes."""
    complete = replace(code, max_error=0.0) if isinstance(code, ErasureHead) else code
    busy_s = int(code.assignment.sum(dim=1).max()) * sizes.gradient_s
    delays = ShiftedExponential(busy_s, sizes.delay_s)

    def ready(arrived: Tensor) -> bool:
        return int(arrived.sum()) >= enough or complete.can_decode(arrived)

    drawn = delays.draw(steps, code.num_workers, generator("delays"))
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
