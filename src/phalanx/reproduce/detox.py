"""DETOX: what votes in small groups do for robust rules, and where they stop helping."""

import warnings
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

from torch.optim import SGD

from phalanx.aggregation import Bucketing, Bulyan, CoordinateMedian, Krum, Mean, MultiKrum
from phalanx.attacks import ALittleIsEnough, Constant, RandomWorkers
from phalanx.coding import Detox as DetoxCode
from phalanx.data import Digits
from phalanx.experiments import Cell, Records, grid, train_run
from phalanx.models import ResNet18
from phalanx.reporting.format import percent
from phalanx.reproduce.base import Findings, Images, Recipe, Scope, report, sized
from phalanx.reproduce.robust_training import REFERENCE, accuracy_plot, by_run, training_table

_REFERENCE = "mean, no attack"
_CONSTANT, _LITTLE = Constant(-100.0), ALittleIsEnough(z=1.5)
_COUNTED = 1000  # rounds in which corrupted groups are counted


@dataclass(frozen=True)
class Detox(Recipe):
    """DETOX against the same rules without votes, and the mean: test accuracy, seconds per round.

    First `num_workers` workers, few of them Byzantine, train a small network on digits under two
    attacks. Then come the paper's three rules with DETOX and without. Last, runs with so many
    Byzantine workers that few buckets do not help any more.

    In full the paper's rules train ResNet-18 on CIFAR-10: hours on a GPU.
    """

    name: ClassVar[str] = "detox"

    num_workers: int = 45
    """Workers (p)."""
    few_byzantine: int = 5
    """Byzantine workers in every round (q), of the runs that DETOX is to survive."""
    many_byzantine: int = 9
    """Byzantine workers in every round of the others."""
    group_sizes: tuple[int, int] = (3, 5)
    """Workers in a group (r); the first is the paper's."""
    num_buckets: tuple[int, int] = (5, 3)
    """Buckets of means for either size of groups."""
    steps: int = sized(100, 300, 1000)
    """Rounds of the runs on digits."""
    samples_per_worker: int = 8
    """Samples per round and worker, of the runs on digits."""
    image_steps: int = 4000
    """Rounds of the runs on images, in full."""
    samples_per_image_worker: int = 32
    """Samples per round and worker, of the runs on images."""
    image_width: int = 64
    """Channels of the first stage of ResNet-18."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Runs on digits, groups that are counted, and the paper's rules, which are timed."""
        groups = {
            f"{number} Byzantine, groups of {self.group_sizes[size]}": {
                "code": self._code(number, size)
            }
            for number in (self.few_byzantine, self.many_byzantine)
            for size in (0, 1)
        }
        images, rules, digits = self._images(scope), self._rules(), self._on_digits()
        fixed = digits
        if images.published:
            rules = {_REFERENCE: {"rule": Mean()}} | rules
            fixed = digits | {
                "data": images.source,
                "model": partial(ResNet18, width=self.image_width),
                "device": scope.device,
                "optimizer": partial(SGD, lr=0.05, momentum=0.9),
                "batch_size": self.samples_per_image_worker * self.num_workers,
                "steps": self.image_steps,
                "evaluate_every": max(1, self.image_steps // 5),
            }
        return [
            *grid(train_run, {"run": self._runs()}, digits),
            *grid(count_corrupted, {"groups": groups}),
            *grid(train_run, {"paper": {"rules": {}}, "run": rules}, fixed, alone=True),
        ]

    def _images(self, scope: Scope) -> Images:
        return scope.images(("cifar10.npz", "cifar10_full_jpeg.npz"), "CIFAR-10")

    def _on_digits(self) -> dict[str, Any]:
        return {
            "data": Digits(),
            "num_workers": self.num_workers,
            "optimizer": partial(SGD, lr=0.1),
            "batch_size": self.samples_per_worker * self.num_workers,
            "steps": self.steps,
            "evaluate_every": max(1, self.steps // 5),
            "reference": REFERENCE,
        }

    def _code(self, byzantine: int, size: int = 0, buckets: int | None = None) -> DetoxCode:
        """DETOX with the median over means, for the first size of groups or the second."""
        with warnings.catch_warnings():  # what it warns of is what is to be shown
            warnings.filterwarnings("ignore", message=".*on average")
            return DetoxCode(self.num_workers, byzantine, self.group_sizes[size], buckets)

    def _runs(self) -> dict[str, dict[str, Any]]:
        few, many = self.few_byzantine, self.many_byzantine
        (small, large), (some, fewer) = self.group_sizes, self.num_buckets
        constant = {"attack": _CONSTANT, "byzantine": RandomWorkers(few)}
        little = {"attack": _LITTLE, "byzantine": RandomWorkers(many)}
        quiet = self._code(1, 0, some)
        runs: dict[str, dict[str, Any]] = {
            _REFERENCE: {"rule": Mean()},
            "mean, constant": {"rule": Mean(), **constant},
            "median, constant": {"rule": CoordinateMedian(few), **constant},
            "DETOX, constant": {"code": self._code(few, 0, some), **constant},
            "mean, little": {"rule": Mean(), **little},
            "median, little": {"rule": CoordinateMedian(many), **little},
            "Krum, little": {"rule": Krum(many), **little},
            f"DETOX of {small}, little": {"code": self._code(many, 0, some), **little},
            f"DETOX of {large}, little": {"code": self._code(many, 1, fewer), **little},
        }
        for size, buckets in ((0, some), (1, fewer), (0, None), (1, None)):
            each = "a bucket each" if buckets is None else f"{buckets} buckets"
            code = {"code": self._code(many, size, buckets)}
            title = f"DETOX of {self.group_sizes[size]}, {each}, limit"
            runs[title] = code | {"attack": _CONSTANT, "byzantine": RandomWorkers(many)}
        one = {"attack": _CONSTANT, "byzantine": RandomWorkers(1)}
        return runs | {
            "DETOX, one Byzantine": {"code": quiet, **one},
            "DETOX, none": {"code": quiet},
        }

    def _rules(self) -> dict[str, dict[str, Any]]:
        """The paper's rules without DETOX, and with it as in its official code."""
        n, q, size = self.num_workers, self.few_byzantine, self.group_sizes[0]
        methods: dict[str, dict[str, Any]] = {
            "Multi-Krum alone": {"rule": MultiKrum(q)},
            "Bulyan alone": {"rule": Bulyan(q)},
            "median alone": {"rule": Bucketing(size) >> CoordinateMedian()},
            "DETOX Multi-Krum": {"code": DetoxCode(n, q, size, 2, MultiKrum(), Mean())},
            "DETOX Bulyan": {"code": DetoxCode(n, q, size, outer=Bulyan())},
            "DETOX median": {"code": self._code(q, 0, self.num_buckets[0])},
        }
        staged = {"attack": _LITTLE, "byzantine": RandomWorkers(q)}
        return {title: method | staged for title, method in methods.items()}

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Accuracies with votes and without, what is lost to them, and the limit."""
        images, rules = self._images(scope), by_run(found.where(paper="rules"))
        groups = found.where(groups=found.labels("groups"))
        runs = by_run(one for one in found if one["groups"] is None and one["paper"] is None)
        constant, limits = (
            [one for title, one in runs.items() if title.endswith(f", {end}")]
            for end in ("constant", "limit")
        )
        clean, named = runs[_REFERENCE], ("Multi-Krum", "Bulyan", "median")
        pairs = {name: (rules[f"DETOX {name}"], rules[f"{name} alone"]) for name in named}
        gain = min(a["test_accuracy"] - b["test_accuracy"] for a, b in pairs.values())
        same = runs["DETOX, one Byzantine"]["weights"] == runs["DETOX, none"]["weights"]
        untouched = clean["test_accuracy"]
        held, lost = (runs[f"{name}, constant"]["test_accuracy"] for name in ("DETOX", "mean"))
        ends = {one["run"].removesuffix(", limit"): one["test_accuracy"] for one in limits}
        values = {
            "recipe": self,
            "data": images.origin,
            "setting": "images, ResNet-18" if images.published else "digits, MLP",
            "runs": runs,
            "rules": rules,
            "groups": groups,
            "worst": min(ends.values()),
            "bits": "" if same else "not ",
            "clean": untouched,
            "times": {
                name: alone["decode_seconds"] / voted["decode_seconds"]
                for name, (voted, alone) in pairs.items()
            },
            "ends": "; ".join(f"{name} {percent(share)}" for name, share in ends.items()),
        }
        holds = {
            "rules": [gain >= 0.1, gain >= 0],
            "majority": [same],
            "constant": [held >= untouched - 0.02 and lost < untouched - 0.1],
            "groups": None,
            "cheaper": None,
            "limit": None,
        }
        columns = ("groups", "number", "expected", "counted", "at_most")
        rows = [
            (*(one[name] for name in columns), buckets)
            for one, buckets in zip(groups, 2 * self.num_buckets, strict=True)
        ]
        parts = report(self.told, holds, values, answer="answer")
        if images.published:
            parts += training_table(runs.values()) + training_table(rules.values(), "Images")
        else:
            parts += training_table([*runs.values(), *rules.values()])
        caption = "Over rounds, on the test set."
        parts += report(self.told, {}, {}, {"groups": rows})
        parts += accuracy_plot("constant", caption, [clean, *constant])
        parts += accuracy_plot("a little is enough", caption, rules.values())
        return parts + accuracy_plot("constant, many Byzantine", caption, [clean, *limits])


def count_corrupted(*, code: DetoxCode) -> dict[str, Any]:
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
