"""Secure aggregation: the clear rule's answer, from servers that see no message."""

import copy
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

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
from phalanx.models import MLP
from phalanx.privacy import SecureAggregation, SecureSetup, communication_cost
from phalanx.randomness import generator, seeded
from phalanx.reporting import Table, compare_runs, load_run
from phalanx.reporting.format import count, difference, percent
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe
from phalanx.training import train

_UNIT = SecureSetup().unit
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
class _Exact:
    """How one rule fared."""

    rule: str
    draws: int
    same: int
    """Draws in which the secure rule gave weight to the same workers."""
    error: float
    """Largest difference to the clear aggregate, in units of the fixed point."""


class _Round(NamedTuple):
    """What a round costs: seconds, and bytes against the messages as float32."""

    workers: int
    numbers: int
    seconds: float
    ratio: float
    upload: float
    between_servers: float
    from_dealer: float


class _Run(NamedTuple):
    """How training ended; the gap is the relative weight difference to the clear rule's run."""

    title: str
    accuracy: float
    gap: float


@dataclass(frozen=True)
class SecureAggregationRecipe(Recipe):
    """Secure two-server aggregation against the same rules in the clear.

    First aggregates of random messages with liars among them, then what each server sees, then time
    and bytes against the number of workers and the length of messages, then training under attack.

    Cost: in quick mode about a minute on two cores.
    Source: He, Karimireddy, Jaggi, "Secure Byzantine-Robust Machine Learning", arXiv 2006.04747,
    2020.
    """

    name: ClassVar[str] = "secure-aggregation"
    paper: ClassVar[str] = (
        "He, Karimireddy and Jaggi, Secure Byzantine-Robust Machine Learning, arXiv 2006.04747, "
        "2020"
    )

    num_workers: int = 10
    """Workers (n)."""

    num_byzantine: int = 2
    """Liars among them (f)."""

    draws: int | None = None
    """Random draws a rule; by default 20, or 100 in full."""

    steps: int | None = None
    """Rounds of the training runs; by default 60, or 400 in full."""

    sizes: tuple[tuple[int, int], ...] | None = None
    """Workers and numbers in a message of the rounds that are timed."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Compares, times, then trains on scikit-learn's digits whatever `data` is."""
        draws = self.draws or (100 if full else 20)
        progress("aggregates in the clear and secure")
        exact = [self._compared(name, rule, draws) for name, rule in self._rules().items()]
        progress("what the servers see")
        views = self._views()
        caught = self._caught()
        times = [self._timed(*size, progress) for size in self._sizes(full)]
        runs = self._trained(out / "runs", self.steps or (400 if full else 60), progress)
        findings = (*_exactness(exact), *views, caught, _overhead(times), *_training(runs))
        return Findings(
            answer=_answer(exact, times, runs),
            findings=findings,
            tables=(_exact_table(exact), _time_table(times), _training_table(runs)),
            notes=_NOTES,
            settings={
                "workers": self.num_workers,
                "liars": self.num_byzantine,
                "draws": draws,
                "full": full,
            },
        )

    def _rules(self) -> dict[str, Aggregator]:
        return {
            "Krum": Krum(self.num_byzantine),
            "Multi-Krum": MultiKrum(self.num_byzantine),
            "MDA": MinimumDiameterAveraging(self.num_byzantine),
            "mixing, then Krum": NearestNeighborMixing(self.num_byzantine)
            >> Krum(self.num_byzantine),
            "geometric median": GeometricMedian(self.num_byzantine),
        }

    def _sizes(self, full: bool) -> tuple[tuple[int, int], ...]:
        quick = ((10, 10_000), (10, 100_000), (20, 100_000))
        return self.sizes or ((*quick, (10, 1_000_000), (50, 100_000)) if full else quick)

    def _messages(self, draw: int, dim: int = 1000) -> Tensor:
        rows = torch.randn(self.num_workers, dim, generator=generator("secure", draw)) / math.sqrt(
            dim
        )
        rows[: self.num_byzantine] *= -1 - draw % 5
        return rows

    def _compared(self, name: str, rule: Aggregator, draws: int) -> _Exact:
        same, error = 0, 0.0
        for draw in range(draws):
            rows = self._messages(draw)
            ours, clear = SecureAggregation(rule).explain(rows), rule.explain(rows)
            if ours.weights is not None and clear.weights is not None:
                same += torch.equal(ours.weights != 0, clear.weights != 0)
            error = max(error, (ours.value - clear.value).abs().max().item() / _UNIT)
        return _Exact(name, draws, same, error)

    def _views(self) -> tuple[Finding, ...]:
        """What is in the servers' hands, looked at as bytes."""
        rule = SecureAggregation(MultiKrum(self.num_byzantine))
        seen = rule.run(self._messages(0), rule.init(0))
        one, other = seen.model_server, seen.worker_server
        assert one.masked is not None
        worst = max(map(_uneven, (one.shares(), other.shares(), one.masked)))
        return (
            Finding(
                "No server sees an update: what it holds of one is uniformly random.",
                "uniform",
                "bytes of shares and opened maskings deviate from uniform by at most "
                f"{worst:.1f} standard deviations (chi-square)",
                "yes" if worst < 5 else "no",
            ),
            Finding(
                "The model server learns the aggregate alone, the worker server distances alone.",
                "by construction",
                f"the model server holds {one.setup.dim} numbers in the clear, the worker server "
                f"the distances of {math.comb(self.num_workers, 2)} pairs and the rule's verdict; "
                "neither type has a field for the other's",
                "yes",
            ),
        )

    def _caught(self) -> Finding:
        """A lie that is 2^61 away in one coordinate, where all others are 0."""
        rows = self._messages(1).double()
        rows[:, 0] = 0
        rows[0] = rows[-1]  # and at the same distances modulo 2^64 as this one
        rows[0, 0] = 2.0**61 * _UNIT
        rule = SecureAggregation(MultiKrum(self.num_byzantine))
        answer = rule.explain(rows)
        return Finding(
            "Whatever a liar shares is just another message, which the rule survives.",
            NOT_QUOTED,
            "not by itself: a message far away can look near to all modulo 2^64; the range check "
            f"{'left it out' if answer.dropped[0] else 'did not see it'}",
            "partly" if answer.dropped[0] else "no",
        )

    def _timed(self, num_workers: int, dim: int, progress: Progress) -> _Round:
        progress(f"timing {num_workers} workers with {dim} numbers")
        rows = torch.randn(num_workers, dim, generator=generator("secure", "time"))
        rows /= math.sqrt(dim)
        clear = MultiKrum(num_workers // 5)
        ratios, seconds = [], []
        for _ in range(4):
            clear_s, secure_s = _seconds(clear, rows), _seconds(SecureAggregation(clear), rows)
            ratios.append(secure_s / clear_s)
            seconds.append(secure_s)
        moved = communication_cost(SecureSetup(num_workers, dim))
        return _Round(
            num_workers,
            dim,
            median(seconds[1:]),
            median(ratios[1:]),
            moved.upload_bytes / (4 * dim),
            moved.between_servers_bytes / (4 * dim * num_workers),
            moved.from_dealer_bytes / (4 * dim),
        )

    def _trained(self, out: Path, steps: int, progress: Progress) -> list[_Run]:
        """Every rule in the clear, then secure."""
        splits = Digits().load()
        with seeded(0, "secure aggregation"):
            model = MLP(splits.input_shape, splits.num_classes)
        found: list[_Run] = []
        for name, rule in (
            ("Krum", Krum(self.num_byzantine)),
            ("Multi-Krum", MultiKrum(self.num_byzantine)),
            ("mean", Mean()),
        ):
            records = []
            for title, chosen in ((name, rule), (f"secure {name}", SecureAggregation(rule))):
                progress(f"training: {title}")
                folder = out / title.replace(" ", "-")
                train(
                    copy.deepcopy(model),
                    splits.train,
                    rule=chosen,
                    num_workers=self.num_workers,
                    attack=None if name == "mean" else ReverseGradient(10.0),
                    optimizer=partial(torch.optim.SGD, lr=0.1),
                    steps=steps,
                    test=splits.test,
                    out=folder,
                    evaluate_every=steps,
                    checkpoint_every=steps,
                    title=title,
                )
                records.append(load_run(folder))
            found += [
                _Run(row.title, row.test_accuracy or 0.0, row.relative_difference or 0.0)
                for row in compare_runs(records, records[0])
            ]
        return found


def _seconds(rule: Aggregator, rows: Tensor) -> float:
    start = time.perf_counter()
    rule(rows)
    return time.perf_counter() - start


def _uneven(words: Tensor) -> float:
    """Chi-square of the bytes against uniform ones, in standard deviations from its mean."""
    counts = torch.bincount(words.contiguous().view(torch.uint8).flatten().long(), minlength=256)
    expected = counts.sum() / 256
    square = ((counts - expected).square().sum() / expected).item()
    return abs(square - 255) / math.sqrt(2 * 255)


def _exactness(exact: list[_Exact]) -> tuple[Finding, ...]:
    same, draws = sum(one.same for one in exact), sum(one.draws for one in exact)
    error = max(one.error for one in exact)
    return (
        Finding(
            "The rule's choice is that of the rule in the clear.",
            "identical",
            f"the same workers have weight in {same} of {count(draws, 'draw')}",
            "yes" if same == draws else "no",
        ),
        Finding(
            "The aggregate is that of the rule in the clear, up to the fixed point.",
            NOT_QUOTED,
            f"largest difference {error:.2f} units of 2^-16",
            "yes" if error <= 2 else "no",
        ),
    )


def _overhead(times: list[_Round]) -> Finding:
    ratios = [row.ratio for row in times]
    uploads = [row.upload for row in times]
    return Finding(
        "Security costs little: servers do the work, workers send no more than they need to.",
        NOT_QUOTED,
        f"{min(ratios):.0f} to {max(ratios):.0f} times the seconds of the rule in the clear; a "
        f"worker sends {max(uploads):.2f} times the bytes of float32",
        "partly",
    )


def _training(runs: list[_Run]) -> tuple[Finding, ...]:
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    worst = max(abs(clear.accuracy - secure.accuracy) for clear, secure in pairs)
    listed = "; ".join(
        f"{clear.title} {percent(clear.accuracy)}, secure {percent(secure.accuracy)}"
        for clear, secure in pairs
    )
    return (
        Finding(
            "Training with the secure rule is as good as in the clear, under attack.",
            NOT_QUOTED,
            f"test accuracies: {listed} (the mean without attack)",
            "yes" if worst <= 0.02 else "partly" if worst <= 0.05 else "no",
        ),
    )


def _answer(exact: list[_Exact], times: list[_Round], runs: list[_Run]) -> str:
    same, draws = sum(one.same for one in exact), sum(one.draws for one in exact)
    kept = "always" if same == draws else f"in {same} of {draws} draws"
    accuracies = {run.title: percent(run.accuracy) for run in runs}
    ratios = [row.ratio for row in times]
    return (
        f"Two servers that see no message chose {kept} as the rules in the clear do, and training "
        f"with secure Multi-Krum under attack ended at {accuracies['secure Multi-Krum']} test "
        f"accuracy (in the clear {accuracies['Multi-Krum']}); a round took {min(ratios):.0f} to "
        f"{max(ratios):.0f} times as long."
    )


def _exact_table(exact: list[_Exact]) -> Table:
    return Table(
        "Aggregates",
        "Random messages, some of them lies; error in units of the fixed point, 2^-16.",
        ("rule", "draws", "same workers", "largest error"),
        tuple((one.rule, one.draws, one.same, one.error) for one in exact),
    )


def _time_table(times: list[_Round]) -> Table:
    return Table(
        "A round",
        "Multi-Krum; medians. Bytes against the messages as float32.",
        (
            "workers",
            "numbers",
            "seconds",
            "times the clear rule",
            "upload / message",
            "between servers / all messages",
            "from the dealer / message",
        ),
        tuple(times),
    )


def _training_table(runs: list[_Run]) -> Table:
    return Table(
        "Training",
        "Digits; liars reverse their gradient tenfold, but not against the mean.",
        ("run", "test accuracy", "relative difference to the clear rule's weights"),
        tuple((run.title, percent(run.accuracy), difference(run.gap)) for run in runs),
    )
