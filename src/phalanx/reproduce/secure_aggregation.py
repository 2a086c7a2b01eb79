"""Secure aggregation: the clear rule's answer, from servers that see no message."""

import math
import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD

from phalanx.aggregation import (
    Aggregator,
    GeometricMedian,
    Krum,
    Mean,
    MinimumDiameterAveraging,
    MultiKrum,
    NearestNeighborMixing,
)
from phalanx.attacks import ReverseGradient
from phalanx.data import Digits
from phalanx.experiments import Cell, Records, grid, train_run
from phalanx.privacy import SecureAggregation, SecureSetup, communication_cost
from phalanx.randomness import generator
from phalanx.reporting.format import count, difference, percent
from phalanx.reproduce.base import NOT_QUOTED, Claim, Findings, Measure, Recipe, Scope, published

_UNIT = SecureSetup().unit
_BYTES = ("upload / message", "between servers / all messages", "from the dealer / message")
_NOTES = (
    "All parties run in one process here, one after the other; as processes of their own they take "
    "the same steps over gRPC. Seconds are those of all parties together.",
    "A message that is far away and looks near modulo 2^64 is found by a range check, which is not "
    "from the paper; its cost is part of the figures.",
    "The worker server learns distances between messages: the price of rules that weigh by "
    "distance.",
    "Servers are honest but curious, and do not collude; randomness is dealt by a third party.",
)


@dataclass(frozen=True)
class SecureAggregationRecipe(Recipe):
    """Secure two-server aggregation against the same rules in the clear.

    First aggregates of random messages, Byzantine ones among them, then what each server sees, then
    training under attack, then time and bytes against the number of workers and the length of
    messages. Cost: in quick mode a few seconds.
    """

    name: ClassVar[str] = "secure-aggregation"
    paper: ClassVar[str] = (
        "He, Karimireddy and Jaggi, Secure Byzantine-Robust Machine Learning, arXiv 2006.04747, "
        "2020"
    )

    num_workers: int = 10
    """Workers (n)."""
    num_byzantine: int = 2
    """Byzantine workers among them (f)."""
    draws: int | None = None
    """Random draws per rule; by default 20, or 100 in full."""
    steps: int | None = None
    """Rounds of the training runs; by default 60, or 400 in full."""
    sizes: tuple[tuple[int, int], ...] | None = None
    """Workers and numbers in a message of the rounds that are timed."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Rules on random messages, what servers see, and training on scikit-learn's digits."""
        bound = self.num_byzantine
        rules = {
            "Krum": Krum(bound),
            "Multi-Krum": MultiKrum(bound),
            "MDA": MinimumDiameterAveraging(bound),
            "mixing, then Krum": NearestNeighborMixing(bound) >> Krum(bound),
            "geometric median": GeometricMedian(bound),
        }
        workers = {"num_workers": self.num_workers, "num_byzantine": bound}
        draws = {**workers, "draws": self.draws or (100 if scope.full else 20)}
        steps = self.steps or (400 if scope.full else 60)
        training = {
            "data": Digits(),
            "num_workers": self.num_workers,
            "optimizer": partial(SGD, lr=0.1),
            "steps": steps,
            "evaluate_every": steps,
        }
        attacked = {"attack": ReverseGradient(10.0)}
        runs = {
            f"{secure}{name}": {
                "rule": SecureAggregation(rule) if secure else rule,
                "reference": {"rule": rule},
                **({} if name == "mean" else attacked),
            }
            for name, rule in (*list(rules.items())[:2], ("mean", Mean()))
            for secure in ("", "secure ")
        }
        return [
            *grid(_compare, {"part": {"aggregates": {}}, "rule": rules}, draws),
            *grid(_look, {"part": {"views": {}}}, workers),
            *grid(_lie, {"part": {"lie": {}}}, workers),
            *grid(train_run, {"part": {"training": {}}, "run": runs}, training),
        ]

    def measure(self, scope: Scope, run: Measure) -> Records:
        """Compares and trains, then times."""
        quick = ((10, 10_000), (10, 100_000), (20, 100_000))
        sizes = self.sizes or ((*quick, (10, 1_000_000), (50, 100_000)) if scope.full else quick)
        axis = {f"{n} x {dim}": {"num_workers": n, "dim": dim} for n, dim in sizes}
        timed = grid(_time, {"part": {"time": {}}, "size": axis})
        return Records([*run(self.cells(scope)), *run(timed, jobs=1)])

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Whether rules choose alike, what servers learn, what it costs, and how training ends."""
        exact, timed, runs = (found.where(part=one) for one in ("aggregates", "time", "training"))
        same, draws = exact.reduce("same", sum), exact.reduce("draws", sum)
        error, ratios = exact.reduce("error", max), [one["ratio"] for one in timed]
        least, most = f"{min(ratios):.0f}", f"{max(ratios):.0f}"
        (view,), (lie,) = found.where(part="views"), found.where(part="lie")
        accuracy = {str(one["run"]): one["test_accuracy"] for one in runs}
        clear = [name for name in accuracy if not name.startswith("secure")]
        worst = max(abs(accuracy[name] - accuracy[f"secure {name}"]) for name in clear)
        ended = "; ".join(
            f"{name} {percent(accuracy[name])}, secure {percent(accuracy[f'secure {name}'])}"
            for name in clear
        )
        kept, figures = (
            "always" if same == draws else f"in {same} of {draws} draws",
            published(self.name),
        )
        return Findings(
            answer=(
                f"Two servers that see no message chose {kept} as the rules in the clear do, and "
                "training with secure Multi-Krum under attack ended at "
                f"{percent(accuracy['secure Multi-Krum'])} test accuracy (in the clear "
                f"{percent(accuracy['Multi-Krum'])}); a round took {least} to {most} times as long."
            ),
            claims=[
                Claim(
                    "The rule's choice is that of the rule in the clear.",
                    figures["choice"],
                    f"the same workers have weight in {same} of {count(draws, 'draw')}",
                    [same == draws],
                ),
                Claim(
                    "The aggregate is that of the rule in the clear, up to the fixed point.",
                    NOT_QUOTED,
                    f"largest difference {error:.2f} units of 2^-16",
                    [error <= 2],
                ),
                Claim(
                    "No server sees an update: what it holds of one is uniformly random.",
                    figures["views"],
                    "bytes of shares and opened maskings deviate from uniform by at most "
                    f"{view['uneven']:.1f} standard deviations (chi-square)",
                    [view["uneven"] < 5],
                ),
                Claim(
                    "The model server learns the aggregate alone, the worker server distances "
                    "alone.",
                    figures["learned"],
                    f"the model server holds {view['dim']} numbers in the clear, the worker server "
                    f"the distances of {math.comb(self.num_workers, 2)} pairs and the rule's "
                    "verdict; neither type has a field for the other's",
                    [True],
                ),
                Claim(
                    "Whatever a Byzantine worker shares is just another message, which the rule "
                    "survives.",
                    NOT_QUOTED,
                    "not by itself: a message far away can look near to all modulo 2^64; the range "
                    f"check {'left it out' if lie['caught'] else 'did not see it'}",
                    [lie["caught"], False],
                ),
                Claim(
                    "Security costs little: servers do the work, workers send no more than they "
                    "need to.",
                    NOT_QUOTED,
                    f"{least} to {most} times the seconds of the rule in the clear; a worker sends "
                    f"{timed.reduce(_BYTES[0], max):.2f} times the bytes of float32",
                    [True, False],
                ),
                Claim(
                    "Training with the secure rule is as good as in the clear, under attack.",
                    NOT_QUOTED,
                    f"test accuracies: {ended} (the mean without attack)",
                    [worst <= 0.02, worst <= 0.05],
                ),
            ],
            tables=[
                exact.table(
                    "Aggregates",
                    "Random messages, some of them Byzantine; error in units of the fixed point, "
                    "2^-16.",
                    {
                        "rule": "rule",
                        "draws": "draws",
                        "same workers": "same",
                        "largest error": "error",
                    },
                ),
                timed.table(
                    "A round",
                    "Multi-Krum; medians. Bytes against the messages as float32.",
                    {
                        "workers": "workers",
                        "numbers": "numbers",
                        "seconds": "seconds",
                        "times the clear rule": "ratio",
                        **{name: name for name in _BYTES},
                    },
                ),
                runs.table(
                    "Training",
                    "Digits; Byzantine workers reverse their gradient tenfold, but not against the "
                    "mean.",
                    {
                        "run": "run",
                        "test accuracy": lambda one: percent(one["test_accuracy"]),
                        "relative difference to the clear rule's weights": lambda one: difference(
                            one["relative_difference"]
                        ),
                    },
                ),
            ],
            notes=_NOTES,
        )


def _messages(num_workers: int, num_byzantine: int, draw: int, dim: int = 1000) -> Tensor:
    rows = torch.randn(num_workers, dim, generator=generator("secure", draw)) / math.sqrt(dim)
    rows[:num_byzantine] *= -1 - draw % 5
    return rows


def _compare(num_workers: int, num_byzantine: int, rule: Aggregator, draws: int) -> dict[str, Any]:
    """Draws in which both rules gave weight to the same workers, and the largest difference."""
    same, error = 0, 0.0
    for draw in range(draws):
        rows = _messages(num_workers, num_byzantine, draw)
        ours, clear = SecureAggregation(rule).explain(rows), rule.explain(rows)
        if ours.weights is not None and clear.weights is not None:
            same += torch.equal(ours.weights != 0, clear.weights != 0)
        error = max(error, (ours.value - clear.value).abs().max().item() / _UNIT)
    return {"draws": draws, "same": same, "error": error}


def _look(num_workers: int, num_byzantine: int) -> dict[str, Any]:
    """What is in the servers' hands, looked at as bytes."""
    rule = SecureAggregation(MultiKrum(num_byzantine))
    seen = rule.run(_messages(num_workers, num_byzantine, 0), rule.init(0))
    one, other = seen.model_server, seen.worker_server
    assert one.masked is not None
    worst = max(map(_uneven, (one.shares(), other.shares(), one.masked)))
    return {"uneven": worst, "dim": one.setup.dim}


def _uneven(words: Tensor) -> float:
    """Chi-square of the bytes against uniform ones, in standard deviations from its mean."""
    counts = torch.bincount(words.contiguous().view(torch.uint8).flatten().long(), minlength=256)
    expected = counts.sum() / 256
    square = ((counts - expected).square().sum() / expected).item()
    return abs(square - 255) / math.sqrt(2 * 255)


def _lie(num_workers: int, num_byzantine: int) -> dict[str, Any]:
    """A lie that is 2^61 away in one coordinate, where all others are 0."""
    rows = _messages(num_workers, num_byzantine, 1).double()
    rows[:, 0] = 0
    rows[0] = rows[-1]  # and at the same distances modulo 2^64 as this one
    rows[0, 0] = 2.0**61 * _UNIT
    answer = SecureAggregation(MultiKrum(num_byzantine)).explain(rows)
    return {"caught": bool(answer.dropped[0])}


def _time(num_workers: int, dim: int) -> dict[str, Any]:
    """What a round costs: seconds, and bytes against the messages as float32."""
    rows = torch.randn(num_workers, dim, generator=generator("secure", "time")) / math.sqrt(dim)
    clear = MultiKrum(num_workers // 5)
    ratios, seconds = [], []
    for _ in range(4):
        clear_s, secure_s = _seconds(clear, rows), _seconds(SecureAggregation(clear), rows)
        ratios.append(secure_s / clear_s)
        seconds.append(secure_s)
    upload, between, dealt = communication_cost(SecureSetup(num_workers, dim))
    moved = (upload, between / num_workers, dealt)
    return {
        "workers": num_workers,
        "numbers": dim,
        "seconds": median(seconds[1:]),
        "ratio": median(ratios[1:]),
        **{name: one / (4 * dim) for name, one in zip(_BYTES, moved, strict=True)},
    }


def _seconds(rule: Aggregator, rows: Tensor) -> float:
    start = time.perf_counter()
    rule(rows)
    return time.perf_counter() - start
