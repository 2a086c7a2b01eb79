"""DETOX: what votes in small groups do for robust rules, and where they stop helping."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

from torch.optim import SGD

from phalanx.aggregation import Bucketing, Bulyan, CoordinateMedian, Krum, Mean, MultiKrum
from phalanx.attacks import ALittleIsEnough, Constant, RandomWorkers
from phalanx.coding import Detox as DetoxCode
from phalanx.data import Digits
from phalanx.experiments import Cell, Record, Records, grid, train_run
from phalanx.models import ResNet18
from phalanx.reporting import Table
from phalanx.reporting.format import listed, percent
from phalanx.reproduce.base import (
    NOT_QUOTED,
    Claim,
    Findings,
    Images,
    Measure,
    Recipe,
    Scope,
    published,
)
from phalanx.reproduce.robust_training import REFERENCE, accuracy_plot, by_run, training_table

_REFERENCE = "mean, no attack"
_CONSTANT, _LITTLE = Constant(-100.0), ALittleIsEnough(z=1.5)
_TOLD = published("detox")
_PAPER = _TOLD["figures"]
_COUNTED = 1000  # rounds in which corrupted groups are counted


@dataclass(frozen=True)
class Detox(Recipe):
    """DETOX against the same rules without votes, and the mean: test accuracy, seconds per round.

    First `num_workers` workers, few of them Byzantine, train a small network on digits under two
    attacks. Then come the paper's three rules with DETOX and without. Last, runs with so many
    Byzantine workers that few buckets do not help any more.

    In full, given CIFAR-10, the paper's rules train ResNet-18: hours on a GPU.

    Cost: in quick mode under two minutes on two cores.
    """

    name: ClassVar[str] = "detox"
    paper: ClassVar[str] = (
        "Rajput, Wang, Charles and Papailiopoulos, DETOX: A Redundancy-based Framework for Faster "
        "and More Robust Gradient Aggregation, NeurIPS 2019"
    )

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
    steps: int | None = None
    """Rounds of the runs on digits; by default 300, or 1000 in full."""
    samples_per_worker: int = 8
    """Samples per round and worker, of the runs on digits."""
    image_steps: int = 4000
    """Rounds of the runs on images, in full."""
    samples_per_image_worker: int = 32
    """Samples per round and worker, of the runs on images."""
    image_width: int = 64
    """Channels of the first stage of ResNet-18."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Runs on digits, and groups that are counted."""
        groups = {
            f"{number} Byzantine, groups of {self.group_sizes[size]}": {
                "code": self._code(number, size)
            }
            for number in (self.few_byzantine, self.many_byzantine)
            for size in (0, 1)
        }
        digits = grid(train_run, {"run": self._runs()}, self._on_digits(scope))
        return digits + grid(count_corrupted, {"groups": groups})

    def measure(self, scope: Scope, run: Measure) -> Records:
        """The paper's rules run one after the other, since their decoding is timed."""
        images, rules = self._images(scope), self._rules()
        fixed = self._on_digits(scope)
        if images.published:
            rules = {_REFERENCE: {"rule": Mean()}} | rules
            fixed |= {
                "data": images.source,
                "model": partial(ResNet18, width=self.image_width),
                "device": scope.device,
                "optimizer": partial(SGD, lr=0.05, momentum=0.9),
                "batch_size": self.samples_per_image_worker * self.num_workers,
                "steps": self.image_steps,
                "evaluate_every": max(1, self.image_steps // 5),
            }
        timed = grid(train_run, {"paper": {"rules": {}}, "run": rules}, fixed)
        return Records([*run(self.cells(scope)), *run(timed, jobs=1)])

    def _images(self, scope: Scope) -> Images:
        return scope.images(("cifar10.npz", "cifar10_full_jpeg.npz"), "CIFAR-10")

    def _on_digits(self, scope: Scope) -> dict[str, Any]:
        steps = self.steps or (1000 if scope.full else 300)
        return {
            "data": Digits(),
            "num_workers": self.num_workers,
            "optimizer": partial(SGD, lr=0.1),
            "batch_size": self.samples_per_worker * self.num_workers,
            "steps": steps,
            "evaluate_every": max(1, steps // 5),
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
        groups = [one for one in found if one["groups"] is not None]
        runs = by_run(one for one in found if one["groups"] is None and one["paper"] is None)
        of = {
            end: [one for title, one in runs.items() if title.endswith(f", {end}")]
            for end in ("constant", "limit")
        }
        if images.published:
            tables = [training_table(runs.values()), training_table(rules.values(), "Images")]
        else:
            tables = [training_table([*runs.values(), *rules.values()])]
        caption, clean = "Over rounds, on the test set.", runs[_REFERENCE]
        answer, first = self._rules_claim(
            rules, "images, ResNet-18" if images.published else "digits, MLP"
        )
        worst = percent(min(one["test_accuracy"] for one in of["limit"]))
        return Findings(
            answer=f"{answer}; with {self.many_byzantine} that send a constant, few buckets fell "
            f"to {worst}.",
            claims=[first, *self._claims(runs, rules, groups[:2], of["limit"])],
            tables=[*tables, self._groups_table(groups)],
            plots=[
                accuracy_plot("constant", caption, [clean, *of["constant"]]),
                accuracy_plot("a little is enough", caption, list(rules.values())),
                accuracy_plot("constant, many Byzantine", caption, [clean, *of["limit"]]),
            ],
            notes=(f"Data of the paper's rules: {images.origin}.", *_TOLD["notes"]),
        )

    def _rules_claim(self, rules: Mapping[str, Record], setting: str) -> tuple[str, Claim]:
        """What votes do for the paper's rules, as the beginning of the answer and as a claim."""
        voted, alone = (
            [rules[title.format(name)]["test_accuracy"] for name in _PAPER]
            for title in ("DETOX {}", "{} alone")
        )
        reached, without = (listed(list(map(percent, one))) for one in (voted, alone))
        trios = list(zip(_PAPER, voted, alone, strict=True))
        logged = [f"{name} {a['DETOX']} % against {a['alone']} %" for name, a in _PAPER.items()]
        ours = [f"{name} {percent(a)} against {percent(b)}" for name, a, b in trios]
        gain = min(a - b for _, a, b in trios)
        return (
            f"With {self.few_byzantine} Byzantine among {self.num_workers} workers that hide in "
            f"the honest spread, {listed(list(_PAPER))} reached {reached} test accuracy with DETOX "
            f"and {without} without ({setting})"
        ), Claim(
            "Votes remove most of what “a little is enough” sends, and rules reach a higher test "
            "accuracy with them than without.",
            f"{'; '.join(logged)} (ResNet-18, CIFAR-10)",
            f"{'; '.join(ours)} ({setting})",
            [gain >= 0.1, gain >= 0],
        )

    def _claims(
        self,
        runs: Mapping[str, Record],
        rules: Mapping[str, Record],
        groups: Sequence[Record],
        limits: Sequence[Record],
    ) -> list[Claim]:
        titles = ("DETOX, constant", "median, constant", "mean, constant", _REFERENCE)
        held, middle, lost, clean = (runs[title]["test_accuracy"] for title in titles)
        same = runs["DETOX, one Byzantine"]["weights"] == runs["DETOX, none"]["weights"]
        counted = [
            f"{one['expected']:.3f} of {one['number']} by the formula, {one['counted']:.3f} "
            f"counted (groups of {one['size']})"
            for one in groups
        ]
        times = {
            name: rules[f"{name} alone"]["decode_seconds"]
            / rules[f"DETOX {name}"]["decode_seconds"]
            for name in _PAPER
        }
        ends = [
            f"{one['run'].removesuffix(', limit')} {percent(one['test_accuracy'])}"
            for one in limits
        ]
        return [
            Claim(
                "As long as the honest are a majority in every group, lies change nothing.",
                "identical",
                f"with one Byzantine worker, {'' if same else 'not '}bit for bit the run without",
                [same],
            ),
            Claim(
                f"With {self.few_byzantine} Byzantine among {self.num_workers} workers, sending a "
                "constant, DETOX trains as if there were none, where the mean is lost.",
                NOT_QUOTED,
                f"DETOX {percent(held)}, median {percent(middle)}, mean {percent(lost)}, without "
                f"attack {percent(clean)}",
                [held >= clean - 0.02 and lost < clean - 0.1],
            ),
            Claim(
                "Random groups leave few of them to Byzantine workers.",
                NOT_QUOTED,
                f"with {self.few_byzantine} Byzantine: {'; '.join(counted)}",
            ),
            Claim(
                "Rules are cheaper on winners than on all messages: r squared times for those "
                "whose cost is quadratic in the number of messages.",
                NOT_QUOTED,
                "decoding, votes included, is so many times as fast with DETOX: "
                f"{', '.join(f'{name} {ratio:.2g}' for name, ratio in times.items())}; this "
                "package's rules make two passes, whatever the number of messages",
            ),
            Claim(
                f"What is not claimed: that few buckets hold {self.many_byzantine} Byzantine of "
                f"{self.num_workers} workers which send a constant.",
                "—",
                f"{'; '.join(ends)}; without attack {percent(clean)}",
            ),
        ]

    def _groups_table(self, groups: Sequence[Record]) -> Table:
        names = ("groups", "number", "expected", "counted", "at_most")
        rows = [tuple(one[name] for name in names) for one in groups]
        return Table(
            "Groups won by Byzantine workers",
            f"On average by the formula, and counted over {_COUNTED} rounds; and at most, were "
            "they to choose their groups. A quarter of the buckets or more is warned of.",
            ("setting", "groups", "expected", "counted", "at most", "buckets here"),
            tuple((*row, one) for row, one in zip(rows, 2 * self.num_buckets, strict=True)),
        )


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
