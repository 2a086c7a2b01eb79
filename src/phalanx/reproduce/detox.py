"""DETOX: what votes in small groups give robust rules back, and where they stop helping."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

from torch.optim import SGD

from phalanx.aggregation import Aggregator, Bulyan, CoordinateMedian, Mean, MultiKrum
from phalanx.attacks import ALittleIsEnough, FixedWorkers, RandomWorkers
from phalanx.coding import Detox as DetoxCode
from phalanx.experiments import Cell, Records, grid, pivot, train_run
from phalanx.models import MLP, ResNet18
from phalanx.reproduce.base import (
    Findings,
    Recipe,
    Scope,
    above,
    points,
    report,
    sized,
    to_points,
    unless_stopped,
)
from phalanx.reproduce.robust_training import CIFAR, SmallConvNet
from phalanx.reproduce.round_times import all_gradients, time_decoder, time_gradient

_COUNTED = 1000  # rounds in which corrupted groups are counted
_RULES: dict[str, Aggregator] = {"Multi-Krum": MultiKrum(), "Bulyan": Bulyan()}
_RULES |= {"median": CoordinateMedian()}
_MEAN, _ALONE, _VOTED = "mean", "alone", "DETOX"
_EQUAL = 2.0  # points of accuracy below which nobody is called better


@dataclass(frozen=True)
class Detox(Recipe):
    """DETOX against the same rules without votes: test accuracy under attack, seconds per round.

    A small network of convolutions on CIFAR-10 under "a little is enough" by the same Byzantine
    workers in every round, few of them and then many; in full ResNet-18. At size quick an MLP on
    scikit-learn's digits.

    Source: Rajput, Wang, Charles, Papailiopoulos, "DETOX: A Redundancy-based Framework for Faster
    and More Robust Gradient Aggregation", NeurIPS 2019, experiments.
    """

    name: ClassVar[str] = "detox"
    num_workers: int = 45
    """Workers (p)."""
    few: int = 5
    """Byzantine workers (q) that DETOX is to survive."""
    many: int = 9
    """Byzantine workers of the runs that show its limit."""
    group_size: int = 3
    """Workers in a group (r)."""
    z: float = 1.5
    """Standard deviations by which a lie is off the honest mean."""
    steps: int = sized(6, 400, 4000)
    """Rounds of a run."""
    seeds: int = sized(1, 2, 2)
    """Runs of which the mean counts; of those with many Byzantine workers one."""
    samples_per_worker: int = 8
    """Samples per round and worker."""
    timed_model: str = "LeNet"
    """Whose gradient's size is timed."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Rules alone and with DETOX, few and many Byzantine workers; groups; an identity."""
        return [*self._trained(scope), *self._others(scope)]

    def _trained(self, scope: Scope) -> list[Cell]:
        fixed, cells = self._fixed(scope), list[Cell]()
        rules: dict[str, Aggregator] = {_MEAN: Mean(), **_RULES}
        for number in (self.few, self.many):
            staged = {
                "attack": ALittleIsEnough(z=self.z),
                "byzantine": FixedWorkers(list(range(number))),
            }
            named = [*_RULES, _MEAN] if number == self.few else ["Bulyan", _MEAN]
            runs: list[tuple[str, str, dict[str, Any]]] = [
                (_ALONE, rule, {"rule": rules[rule].with_num_byzantine(number)}) for rule in named
            ]
            named = [*_RULES, _MEAN] if number == self.few else ["median"]
            runs += [(_VOTED, rule, {"code": self._code(number, rules[rule])}) for rule in named]
            for votes, rule, run in runs:
                axes: dict[str, Any] = {"byzantine": {number: staged}, "votes": {votes: {}}}
                axes |= {"rule": {rule: run}}
                axes |= {"seed": range(self.seeds if number == self.few else 1)}
                cells += grid(train_run, axes, fixed)
        quiet: dict[str, Any] = {"byzantine": {0: {}}, "votes": {_ALONE: {}}}
        quiet |= {"rule": {_MEAN: {"rule": Mean()}}, "seed": range(self.seeds)}
        return [*cells, *grid(train_run, quiet, fixed)]

    def _others(self, scope: Scope) -> list[Cell]:
        """Groups counted; a lone worker that wins no vote; the gradient that is timed."""
        code, few = self._code(1, CoordinateMedian()), min(self.steps, 20)
        lone = {"attack": ALittleIsEnough(z=self.z), "byzantine": FixedWorkers([0])}
        runs = {"one Byzantine": {"code": code, **lone}, "none": {"code": code}}
        short = {**self._fixed(scope), "steps": few, "evaluate_every": few}
        numbers = {n: {"code": self._code(n, CoordinateMedian())} for n in (self.few, self.many)}
        samples = {"samples": self.samples_per_worker}
        return [
            *grid(train_run, {"identity": runs}, short),
            *grid(count_corrupted, {"groups": numbers}),
            *grid(time_gradient, {"model": [self.timed_model]}, samples, alone=True),
        ]

    def _fixed(self, scope: Scope) -> dict[str, Any]:
        data = scope.images(*CIFAR, sizes=("default", "full"))
        small: Any = SmallConvNet if data.published else MLP
        return {
            "data": data.source,
            "model": partial(ResNet18, width=64) if scope.full else small,
            "device": scope.device,
            "num_workers": self.num_workers,
            "optimizer": partial(SGD, lr=0.05, momentum=0.9),
            "batch_size": self.samples_per_worker * self.num_workers,
            "steps": self.steps,
            "evaluate_every": max(1, self.steps // 20),
        }

    def _code(self, byzantine: int, outer: Aggregator) -> DetoxCode:
        with warnings.catch_warnings():  # what it warns of is what is to be shown
            warnings.filterwarnings("ignore", message=".*on average")
            return DetoxCode(self.num_workers, byzantine, self.group_size, outer=outer)

    def measure(self, scope: Scope, run: Any) -> Records:
        """Trains, then times decoding on gradients of the timed model's size."""
        first = run(self.cells(scope))
        (gradient,) = [one for one in first if "model" in one.labels]
        decoders: dict[str, Any] = {_MEAN: Mean()}
        for name, rule in _RULES.items():
            decoders[name] = rule.with_num_byzantine(self.few)
            decoders[f"{_VOTED} {name}"] = self._code(self.few, rule)
        fixed = {"num_workers": self.num_workers, "byzantine": self.few, "repeats": 9}
        fixed |= {name: gradient[name] for name in ("dim", "gradient_s")}
        timed = run(grid(time_decoder, {"decoder": decoders}, fixed, alone=True))
        all_gradients.cache_clear()
        return Records([*first, *timed])

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Accuracies with votes and without, the limit, and who is faster."""
        labels = dict.fromkeys(("identity", "groups", "decoder"))
        identity, groups, times = (found.where(**{axis: found.labels(axis)}) for axis in labels)
        trained = Records(one for one in found if "votes" in one.labels)
        read = unless_stopped("last_accuracies")
        at = pivot(trained, ("byzantine", "votes", "rule"), "seed", read, to_points)
        table = pivot(trained, ("byzantine", "rule"), "votes", read, to_points)
        few = {
            one: [
                points(trained, byzantine=self.few, votes=votes, rule=one)
                for votes in (_VOTED, _ALONE)
            ]
            for one in (*_RULES, _MEAN)
        }
        many = {
            f"{rule}, {votes}": points(trained, byzantine=self.many, votes=votes, rule=rule)
            for votes, rule in ((_ALONE, "Bulyan"), (_VOTED, "median"), (_ALONE, _MEAN))
        }
        clean, best = points(trained, byzantine=0), max(few[one][0] or 0.0 for one in _RULES)
        same = len({one["weights"] for one in identity}) == 1
        speed = {rule: _ratio(times, rule, "total_s") for rule in _RULES}
        decoding = {rule: _ratio(times, rule, "decode_s") for rule in _RULES}
        values = {
            "recipe": self,
            "data": scope.images(*CIFAR, sizes=("default", "full")).origin,
            "few": few,
            "many": many,
            "clean": clean,
            "best": best,
            "mean": few[_MEAN][1],
            "bits": "" if same else "not ",
            "groups": list(groups),
            "speed": speed,
            "decoding": decoding,
        }
        holds = {
            "rules": [above(few[one][0], few[one][1], 10.0) for one in _RULES],
            "near": [above(few[one][0], clean, -5.0) for one in _RULES],
            "majority": [same],
            "groups": None,
            "faster": [ratio > 1 for ratio in speed.values()],
            "limit": None,
        }
        mean_suffices = above(few[_MEAN][1], best, -_EQUAL)
        tables = {"accuracy": table, "seeds": at, "groups": _rows(groups), "times": times}
        answer = "mean suffices" if mean_suffices else "answer"
        return report(self.told, holds, values, tables, answer=answer)


def _ratio(times: Records, rule: str, seconds: str) -> float:
    """A rule's seconds over those with DETOX before it."""
    (alone,), (voted,) = (times.where(decoder=name) for name in (rule, f"{_VOTED} {rule}"))
    return float(alone[seconds] / voted[seconds])


def _rows(groups: Records) -> Sequence[Sequence[Any]]:
    names = ("groups", "number", "expected", "counted", "at_most")
    return [[one[name] for name in names] for one in groups]


def count_corrupted(*, code: DetoxCode) -> Mapping[str, Any]:
    """Groups of which most are Byzantine: by the formula, and over rounds of random workers."""
    schedule, found = RandomWorkers(code.num_byzantine), []
    for step in range(_COUNTED):
        bad = schedule.byzantine(step, code.num_workers, seed=0)
        groups = code.at(step).groups
        found.append(sum(int(bad[list(group)].sum()) > len(group) // 2 for group in groups))
    return {
        "size": code.group_size,
        "number": code.num_partitions,
        "expected": code.expected_corrupted_groups,
        "counted": fmean(found),
        "at_most": code.max_corrupted_groups,
    }
