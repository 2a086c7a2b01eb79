"""ErasureHead: loss against time, when the server stops waiting before everybody has finished."""

import csv
import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import Dataset

from phalanx.coding import ErasureHead, FractionalRepetition, LinearCode
from phalanx.data import CsvFile, Digits, Splits
from phalanx.randomness import generator
from phalanx.reporting import Plot, Table
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe

_UNCODED, _EXACT = "uncoded", "exact gradient coding"
_APPROXIMATE, _IGNORED = "ErasureHead", "uncoded, stragglers ignored"
_SORTED = "digits sorted by class"
_FILE = "amazon_access.csv.gz"
_LABEL = "ACTION"
_NOTES = (
    "Nobody sleeps: the delays are added up on a simulated clock. Moving and decoding messages "
    "take no time on it.",
    "Logistic regression by gradient descent over all samples, each worker's partition being one "
    "of equal shares of them; with L2 regularisation of one over their number.",
    "A worker takes as long as the gradients of its partitions do, one after the other, and an "
    "exponential delay, drawn anew in every iteration.",
    "Where partitions are alike, whoever is missing is hardly missed, and no code is needed to "
    "ignore stragglers; sorted by class, each partition holds what others do not.",
)


@dataclass(frozen=True)
class Descent:
    """One run of gradient descent."""

    method: str
    """Its name."""
    times: list[float]
    """Simulated seconds at the end of each iteration."""
    losses: list[float]
    """Training loss after each iteration."""
    errors: list[float]
    """`Decoded.error` of each iteration."""

    def time_to(self, target: float) -> float | None:
        """Simulated seconds until the loss was first at most this; None if it never was."""
        pairs = zip(self.times, self.losses, strict=True)
        return next((time for time, loss in pairs if loss <= target), None)

    @property
    def seconds(self) -> float:
        """Simulated seconds an iteration."""
        return self.times[-1] / len(self.times)


@dataclass(frozen=True)
class ErasureHeads(Recipe):
    """Gradient descent with ErasureHead, with exact gradient coding, and without a code.

    Cost: in quick mode about a minute on two cores.
    Source: Wang, Charles and Papailiopoulos, "ErasureHead: Distributed Gradient Descent without
    Delays Using Approximate Gradient Coding", 2019; its delays: exponential, 0.5 s on average.
    """

    name: ClassVar[str] = "erasurehead"
    paper: ClassVar[str] = (
        "Wang, Charles and Papailiopoulos, ErasureHead: Distributed Gradient Descent without "
        "Delays Using Approximate Gradient Coding, 2019"
    )

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
    """Mean of the exponential delay of a worker, in seconds."""

    gradient_s: float = 0.02
    """Seconds that a worker needs for the gradient of one partition."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Descends on the digits, and on the access data if `data` is a folder that holds it."""
        steps = self.iterations or (500 if full else 100)
        digits = Digits().load()
        sets = {"digits": digits, _SORTED: digits}
        path = data / _FILE if data is not None and data.is_dir() else data
        if path is not None and path.is_file() and path.name == _FILE:
            progress("reading the access data")
            sets["access"] = _access(path)
        runs = {}
        for name, splits in sets.items():
            inputs, targets = _whole(splits.train, splits.num_classes)
            if name == _SORTED:
                order = targets.argmax(dim=1).argsort(stable=True)
                inputs, targets = inputs[order], targets[order]
            for method, (code, enough) in self._methods().items():
                progress(f"{name}: {method}")
                runs[name, method] = self._descend(method, code, enough, inputs, targets, steps)
        origin = "scikit-learn's digits"
        origin += f" and {_FILE}, categories hashed" if "access" in sets else ""
        origin += "" if "access" in sets else f" (name a folder that holds {_FILE} for more)"
        return Findings(
            answer=self._answer(runs, "access" if "access" in sets else "digits"),
            findings=tuple(finding for name in sets for finding in self._findings(name, runs)),
            tables=tuple(self._table(name, runs) for name in sets),
            plots=tuple(_plot(name, [runs[name, one] for one in self._methods()]) for name in sets),
            notes=(f"Data: {origin}.", *_NOTES),
            settings={
                "num_workers": self.num_workers,
                "copies": self.copies,
                "collected": self.collected,
                "iterations": steps,
                "delay_s": self.delay_s,
                "gradient_s": self.gradient_s,
                "full": full,
            },
        )

    def _methods(self) -> dict[str, tuple[LinearCode, int]]:
        """The codes, and how many messages suffice in any case."""
        size, copies = self.num_workers, self.copies
        return {
            _UNCODED: (FractionalRepetition(size, 0), size),
            _EXACT: (FractionalRepetition(size, copies - 1), size),
            _APPROXIMATE: (ErasureHead(size, copies=copies), self.collected),
            _IGNORED: (ErasureHead(size, copies=1), self.collected),
        }

    def _descend(
        self,
        method: str,
        code: LinearCode,
        enough: int,
        inputs: Tensor,
        targets: Tensor,
        steps: int,
    ) -> Descent:
        weights = torch.zeros(inputs.shape[1], targets.shape[1])
        shrink = 1 / len(inputs)
        # Softmax is 1/2-smooth in its scores, so the loss is so in the weights:
        smoothness = 0.5 * torch.linalg.matrix_norm(inputs, ord=2).item() ** 2 / len(inputs)
        rate = self.learning_rate / (smoothness + shrink)
        run, now = Descent(method, [], [], []), 0.0
        labels = targets.argmax(dim=1)
        for step in range(steps):
            scores = inputs @ weights
            residual = scores.softmax(dim=1) - targets
            parts = (whole.tensor_split(self.num_workers) for whole in (inputs, residual))
            scale = self.num_workers / len(inputs)
            gradients = torch.stack(
                [scale * (x.T @ r).flatten() for x, r in zip(*parts, strict=True)]
            )
            wait, arrived = self._wait(code, enough, step)
            decoded = code.decode(code.encode_all([gradients]), arrived)
            weights = weights - rate * (decoded.gradient.view_as(weights) + shrink * weights)
            now += wait
            run.times.append(now)
            run.losses.append(cross_entropy(inputs @ weights, labels).item())
            run.errors.append(decoded.error)
        return run

    def _wait(self, code: LinearCode, enough: int, step: int) -> tuple[float, Tensor]:
        """How long the server waits in a step, and who has arrived by then."""
        load = int(code.assignment.sum(dim=1).max())
        delays = torch.empty(self.num_workers, dtype=torch.float64)
        delays.exponential_(1 / self.delay_s, generator=generator("delays", step))
        arrived = torch.zeros(self.num_workers, dtype=torch.bool)
        complete = replace(code, max_error=0.0) if isinstance(code, ErasureHead) else code
        for count, worker in enumerate(delays.argsort().tolist(), start=1):
            arrived[worker] = True
            if count >= enough or complete.can_decode(arrived):
                break
        return load * self.gradient_s + delays[arrived].max().item(), arrived

    def _target(self, name: str, runs: dict[tuple[str, str], Descent]) -> float:
        """The loss after three quarters of the iterations of exact descent."""
        losses = runs[name, _UNCODED].losses
        return losses[3 * len(losses) // 4]

    def _findings(self, name: str, runs: dict[tuple[str, str], Descent]) -> tuple[Finding, ...]:
        target = self._target(name, runs)
        uncoded, exact, near = (runs[name, one] for one in (_UNCODED, _EXACT, _APPROXIMATE))
        times = [one.time_to(target) for one in (near, exact, uncoded)]
        ordered = None not in times and times == sorted(times, key=lambda time: time or 0.0)
        floor, ignored = (
            runs[name, one].losses[-1] / uncoded.losses[-1] - 1 for one in (_APPROXIMATE, _IGNORED)
        )
        harmonic = [sum(1 / one for one in range(1, n + 1)) for n in range(self.num_workers + 1)]
        law = 1 - harmonic[self.num_workers - self.collected] / harmonic[self.num_workers]
        waits = [
            one.seconds - load * self.gradient_s
            for one, load in ((near, self.copies), (uncoded, 1))
        ]
        return (
            Finding(
                f"ErasureHead reaches a loss sooner than exact gradient coding, and that sooner "
                f"than no code ({name}, training loss {target:.4g}).",
                "ErasureHead < exact < uncoded",
                ", ".join("never" if time is None else f"{time:.3g} s" for time in times),
                "yes" if ordered else "no",
            ),
            Finding(
                f"Waiting for {self.collected} of {self.num_workers} takes this share of the wait "
                f"for all ({name}).",
                f"{law:.3f} (law of exponential delays)",
                f"{waits[0] / waits[1]:.3f}",
                "yes" if waits[0] / waits[1] <= 1.1 * law else "no",
            ),
            Finding(
                f"What is left is a small noise floor ({name}).",
                NOT_QUOTED,
                f"after {len(near.losses)} iterations a loss {100 * floor:+.2g} % from that of "
                f"exact descent, and {100 * ignored:+.2g} % if stragglers are ignored without code",
                "—",
            ),
        )

    def _answer(self, runs: dict[tuple[str, str], Descent], name: str) -> str:
        target = self._target(name, runs)
        near, uncoded = (runs[name, one].time_to(target) for one in (_APPROXIMATE, _UNCODED))
        assert uncoded is not None
        if near is None:
            return f"ErasureHead did not reach the training loss {target:.4g} on {name}."
        return (
            f"ErasureHead reached a training loss of {target:.4g} on {name} {uncoded / near:.1f} "
            f"times as fast as descent that waits for all of {self.num_workers} workers."
        )

    def _table(self, name: str, runs: dict[tuple[str, str], Descent]) -> Table:
        target = self._target(name, runs)
        slowest = runs[name, _UNCODED].time_to(target) or math.nan
        rows = []
        for method in self._methods():
            run = runs[name, method]
            taken = run.time_to(target)
            rows.append(
                (
                    method,
                    run.seconds,
                    taken,
                    slowest / taken if taken else None,
                    run.losses[-1],
                    sum(run.errors) / len(run.errors),
                )
            )
        return Table(
            f"Time to a loss: {name}",
            f"Simulated seconds until the training loss is at most {target:.4g}.",
            ("method", "s an iteration", "s to the loss", "speed-up", "last loss", "mean error"),
            tuple(rows),
        )


def _access(path: Path) -> Splits:
    """Who was granted access to what: ten columns of categories, hashed where there are many."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    columns = [column for column in header if column != _LABEL]
    return CsvFile(path, _LABEL, categorical=columns, num_features=512).load()


def _whole(dataset: Dataset[tuple[Tensor, ...]], num_classes: int) -> tuple[Tensor, Tensor]:
    """All inputs, with a constant, and all targets, one-hot, in an order drawn once."""
    size = len(dataset)  # type: ignore[arg-type]
    inputs, targets = dataset[torch.randperm(size, generator=generator("order"))]
    flat = inputs.flatten(1)
    return torch.cat([flat, torch.ones(size, 1)], dim=1), one_hot(targets, num_classes).float()


def _plot(name: str, runs: Sequence[Descent]) -> Plot:
    ends = "; ".join(f"{one.method} {one.losses[-1]:.3g} at {one.times[-1]:.3g} s" for one in runs)
    title = f"Training loss against time: {name}"
    caption = "On the simulated clock; every method makes the same number of iterations."
    return Plot(title, caption, f"{title}. {ends}.", partial(plot_descents, runs))


def plot_descents(runs: Sequence[Descent], ax: Axes) -> None:
    """Training loss over simulated seconds, one line a method, on a logarithmic axis."""
    for colour, run in zip(COLOURS, runs, strict=False):
        ax.plot(run.times, run.losses, color=colour, label=run.method)
    ax.set_yscale("log")
    ax.set_xlabel("simulated seconds")
    ax.set_ylabel("training loss (log scale)")
    ax.legend()
