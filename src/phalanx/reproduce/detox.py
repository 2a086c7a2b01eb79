"""DETOX: what votes in small groups do for robust rules, and where they stop helping."""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import ClassVar

import torch

from phalanx.aggregation import (
    Aggregator,
    Bucketing,
    Bulyan,
    CoordinateMedian,
    Krum,
    Mean,
    MultiKrum,
)
from phalanx.attacks import ALittleIsEnough, Constant, RandomWorkers
from phalanx.coding import Detox as DetoxCode
from phalanx.data import Digits, Splits
from phalanx.models import MLP, ResNet18
from phalanx.reporting import Plot, Row, RunRecord, Table, compare_runs, plot_accuracy
from phalanx.reporting.format import count, listed, percent
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe
from phalanx.reproduce.full_runs import device_for, images
from phalanx.reproduce.training_runs import Case, Experiment, fresh, training_table

_REFERENCE = "mean, no attack"
_CONSTANT = Constant(-100.0)
_LITTLE = ALittleIsEnough(z=1.5)
_PUBLISHED = {  # ResNet-18 on CIFAR-10: test accuracy in percent with DETOX, and without
    "Multi-Krum": (80.3, 45.2),
    "Bulyan": (76.8, 42.6),
    "median": (86.2, 43.7),
}
_FILES = ("cifar10.npz", "cifar10_full_jpeg.npz")
_COUNTED = 1000  # rounds in which corrupted groups are counted
_NOTES = (
    "All runs see the same samples in every round. With DETOX a group has those of its members "
    "together: as many samples a round, each in group_size gradients.",
    "Bad workers are drawn afresh every round, and do not know the groups.",
    "Of the published runs we know 45 workers and groups of 3, and here 5 of the 45 lie. The rule "
    "called median is, without DETOX, the median of the means of random buckets of 3.",
    "“A little is enough” sends the honest mean less 1.5 standard deviations, computed from the "
    "messages of the honest workers.",
    "On digits rules without votes lose little to it, and votes have little to win back: a small "
    "gain there bears out the direction of the claim, not its size.",
    "The runs called limit show where DETOX fails: few buckets of means, of which the groups won "
    "by liars spoil most. The package warns of it when the code is made.",
)


@dataclass(frozen=True)
class Detox(Recipe):
    """DETOX against the same rules without votes, and the mean: test accuracy, and seconds a round.

    First `num_workers` workers, few of them lying, train a small network on digits under two
    attacks. Then come the paper's three rules with DETOX and without. Last, runs with so many liars
    that few buckets do not help any more.

    In full, given CIFAR-10, the paper's rules train ResNet-18: hours on a GPU.

    Cost: in quick mode under two minutes on two cores.
    Source: Rajput, Wang, Charles and Papailiopoulos, "DETOX: A Redundancy-based Framework for
    Faster and More Robust Gradient Aggregation", NeurIPS 2019, experiments.
    """

    name: ClassVar[str] = "detox"
    paper: ClassVar[str] = (
        "Rajput, Wang, Charles and Papailiopoulos, DETOX: A Redundancy-based Framework for Faster "
        "and More Robust Gradient Aggregation, NeurIPS 2019"
    )

    num_workers: int = 45
    """Workers (p)."""

    few_liars: int = 5
    """Liars in every round (q), of the runs that DETOX is to survive."""

    many_liars: int = 9
    """Liars in every round of the others."""

    group_sizes: tuple[int, int] = (3, 5)
    """Workers in a group (r); the first is the paper's."""

    num_buckets: tuple[int, int] = (5, 3)
    """Buckets of means for either size of groups."""

    steps: int | None = None
    """Rounds of the runs on digits; by default 300, or 1000 in full."""

    samples_per_worker: int = 8
    """Samples a round and worker, of the runs on digits."""

    image_steps: int = 4000
    """Rounds of the runs on images, in full."""

    samples_per_image_worker: int = 32
    """Samples a round and worker, of the runs on images."""

    image_width: int = 64
    """Channels of the first stage of ResNet-18."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Trains; `data` is CIFAR-10 as an `.npz` file, or a folder with `cifar10.npz`."""
        steps = self.steps or (1000 if full else 300)
        digits = self._on_digits(steps)
        records = digits.run(self._cases(), out / "runs", progress)
        splits, origin, given = images(data if full else None, _FILES, "CIFAR-10")
        if not given:
            paper, setting = digits.run(self._paper_cases(), out / "runs", progress), "digits, MLP"
        else:
            cases = [Case(_REFERENCE, Mean()), *self._paper_cases()]
            experiment = self._on_images(splits)
            paper, setting = experiment.run(cases, out / "images", progress), "images, ResNet-18"
        rows = _rows(records)
        others = _rows(paper if given else {_REFERENCE: records[_REFERENCE]} | paper)
        table = training_table(rows if given else rows | others)
        apart = (replace(training_table(others), title="Images"),) if given else ()
        return Findings(
            answer=self._answer(others, rows, setting),
            findings=(
                self._rules(others, setting),
                self._unmoved(records),
                self._survives(rows),
                self._corrupted(),
                self._faster(paper),
                self._limit(rows),
            ),
            tables=(table, *apart, self._groups_table()),
            plots=(
                _plot("constant", [records[_REFERENCE], *_of(records, ", constant")]),
                _plot("a little is enough", list(paper.values())),
                _plot("constant, many liars", [records[_REFERENCE], *_of(records, ", limit")]),
            ),
            notes=(f"Data of the paper's rules: {origin}.", *_NOTES),
            settings={
                "workers": self.num_workers,
                "liars": f"{self.few_liars} and {self.many_liars}",
                "rounds": steps,
                "samples a round": digits.batch_size,
                "full": full,
            },
        )

    def _on_digits(self, steps: int) -> Experiment:
        splits = Digits().load()
        return Experiment(
            splits,
            fresh(MLP, splits),
            partial(torch.optim.SGD, lr=0.1),
            self.num_workers,
            self.samples_per_worker * self.num_workers,
            steps,
        )

    def _on_images(self, splits: Splits) -> Experiment:
        network = fresh(partial(ResNet18, width=self.image_width), splits)
        return Experiment(
            splits,
            network.to(device_for(full=True)),
            partial(torch.optim.SGD, lr=0.05, momentum=0.9),
            self.num_workers,
            self.samples_per_image_worker * self.num_workers,
            self.image_steps,
        )

    def _code(self, liars: int, size: int = 0, buckets: int | None = None) -> DetoxCode:
        """DETOX with the median over means, for the first size of groups or the second."""
        with warnings.catch_warnings():  # what it warns of is what is to be shown
            warnings.filterwarnings("ignore", message=".*on average")
            return DetoxCode(self.num_workers, liars, self.group_sizes[size], buckets)

    def _cases(self) -> list[Case]:
        few, many = self.few_liars, self.many_liars
        small, large = self.group_sizes
        some, fewer = self.num_buckets
        cases = [
            Case(_REFERENCE, Mean()),
            Case("mean, constant", Mean(), _CONSTANT, few),
            Case("median, constant", CoordinateMedian(few), _CONSTANT, few),
            Case("DETOX, constant", self._code(few, 0, some), _CONSTANT, few),
            Case("mean, little", Mean(), _LITTLE, many),
            Case("median, little", CoordinateMedian(many), _LITTLE, many),
            Case("Krum, little", Krum(many), _LITTLE, many),
            Case(f"DETOX of {small}, little", self._code(many, 0, some), _LITTLE, many),
            Case(f"DETOX of {large}, little", self._code(many, 1, fewer), _LITTLE, many),
        ]
        for size, buckets in ((0, some), (1, fewer), (0, None), (1, None)):
            code = self._code(many, size, buckets)
            many_or_few = "a bucket each" if buckets is None else f"{buckets} buckets"
            title = f"DETOX of {code.group_size}, {many_or_few}, limit"
            cases.append(Case(title, code, _CONSTANT, many))
        quiet = self._code(1, 0, some)
        return [
            *cases,
            Case("DETOX, one liar", quiet, _CONSTANT, 1),
            Case("DETOX, none", quiet),
        ]

    def _paper_cases(self) -> list[Case]:
        """The paper's rules with DETOX, as in its official code, and without."""
        n, q, size = self.num_workers, self.few_liars, self.group_sizes[0]
        rules: dict[str, Aggregator] = {
            "Multi-Krum": MultiKrum(q),
            "Bulyan": Bulyan(q),
            "median": Bucketing(size) >> CoordinateMedian(),
        }
        votes = {
            "Multi-Krum": DetoxCode(n, q, size, 2, inner=MultiKrum(), outer=Mean()),
            "Bulyan": DetoxCode(n, q, size, outer=Bulyan()),
            "median": self._code(q, 0, self.num_buckets[0]),
        }
        return [Case(f"{name} alone", rule, _LITTLE, q) for name, rule in rules.items()] + [
            Case(f"DETOX {name}", code, _LITTLE, q) for name, code in votes.items()
        ]

    def _rules(self, rows: dict[str, Row], setting: str) -> Finding:
        gains = [
            _accuracy(rows, f"DETOX {name}") - _accuracy(rows, f"{name} alone")
            for name in _PUBLISHED
        ]
        return Finding(
            "Votes remove most of what “a little is enough” sends, and rules reach a higher test "
            "accuracy with them than without.",
            "; ".join(
                f"{name} {with_votes} % against {alone} %"
                for name, (with_votes, alone) in _PUBLISHED.items()
            )
            + " (ResNet-18, CIFAR-10)",
            "; ".join(
                f"{name} {percent(rows[f'DETOX {name}'].test_accuracy)} against "
                f"{percent(rows[f'{name} alone'].test_accuracy)}"
                for name in _PUBLISHED
            )
            + f" ({setting})",
            "yes" if min(gains) >= 0.1 else "partly" if min(gains) >= 0 else "no",
        )

    def _unmoved(self, records: dict[str, RunRecord]) -> Finding:
        quiet = records["DETOX, none"]
        (_, row) = compare_runs([quiet, records["DETOX, one liar"]], quiet)
        same = row.weight_difference == 0
        return Finding(
            "As long as the honest are a majority in every group, lies change nothing.",
            "identical",
            f"with one liar, {'' if same else 'not '}bit for bit the run without",
            "yes" if same else "no",
        )

    def _survives(self, rows: dict[str, Row]) -> Finding:
        clean, held = _accuracy(rows, _REFERENCE), _accuracy(rows, "DETOX, constant")
        lost = _accuracy(rows, "mean, constant")
        return Finding(
            f"With {count(self.few_liars, 'liar')} among {self.num_workers} workers, sending a "
            "constant, DETOX trains as if there were none, where the mean is lost.",
            NOT_QUOTED,
            f"DETOX {percent(held)}, median {percent(rows['median, constant'].test_accuracy)}, "
            f"mean {percent(lost)}, without liars {percent(clean)}",
            "yes" if held >= clean - 0.02 and lost < clean - 0.1 else "no",
        )

    def _corrupted(self) -> Finding:
        parts = []
        for size in (0, 1):
            code = self._code(self.few_liars, size)
            parts.append(
                f"{code.expected_corrupted_groups:.3f} of {code.num_partitions} by the formula, "
                f"{_count_corrupted(code):.3f} counted (groups of {code.group_size})"
            )
        return Finding(
            "Random groups leave few of them to the liars.",
            NOT_QUOTED,
            f"with {count(self.few_liars, 'liar')}: {'; '.join(parts)}",
            "—",
        )

    def _faster(self, records: dict[str, RunRecord]) -> Finding:
        alone, votes = (
            [_decoding(records[title.format(name)]) for name in _PUBLISHED]
            for title in ("{} alone", "DETOX {}")
        )
        ratios = [
            f"{name} {slow / fast:.2g}"
            for name, slow, fast in zip(_PUBLISHED, alone, votes, strict=True)
        ]
        return Finding(
            "Rules are cheaper on winners than on all messages: r squared times for those whose "
            "cost is quadratic in the number of messages.",
            NOT_QUOTED,
            f"decoding, votes included, is so many times as fast with DETOX: {', '.join(ratios)}; "
            "this package's rules make two passes, whatever the number of messages",
            "—",
        )

    def _limit(self, rows: dict[str, Row]) -> Finding:
        ends = [
            f"{title.removesuffix(', limit')} {percent(row.test_accuracy)}"
            for title, row in rows.items()
            if title.endswith(", limit")
        ]
        return Finding(
            f"What is not claimed: that few buckets hold {self.many_liars} liars of "
            f"{self.num_workers} which send a constant.",
            "—",
            "; ".join(ends) + f"; without liars {percent(rows[_REFERENCE].test_accuracy)}",
            "—",
        )

    def _answer(self, others: dict[str, Row], rows: dict[str, Row], setting: str) -> str:
        reached = listed([percent(others[f"DETOX {name}"].test_accuracy) for name in _PUBLISHED])
        alone = listed([percent(others[f"{name} alone"].test_accuracy) for name in _PUBLISHED])
        worst = min(_accuracy(rows, title) for title in rows if title.endswith(", limit"))
        return (
            f"With {count(self.few_liars, 'liar')} among {self.num_workers} workers that hide in "
            f"the honest spread, {listed(list(_PUBLISHED))} reached {reached} test accuracy with "
            f"DETOX and {alone} without ({setting}); with {self.many_liars} liars that send a "
            f"constant, few buckets fell to {percent(worst)}."
        )

    def _groups_table(self) -> Table:
        rows = []
        for liars in (self.few_liars, self.many_liars):
            for size, buckets in enumerate(self.num_buckets):
                code = self._code(liars, size)
                rows.append(
                    (
                        f"{count(liars, 'liar')}, groups of {code.group_size}",
                        code.num_partitions,
                        code.expected_corrupted_groups,
                        _count_corrupted(code),
                        code.max_corrupted_groups,
                        buckets,
                    )
                )
        return Table(
            "Groups won by liars",
            f"On average by the formula, and counted over {_COUNTED} rounds; and at most, were "
            "liars to choose their groups. A quarter of the buckets or more is warned of.",
            ("setting", "groups", "expected", "counted", "at most", "buckets here"),
            tuple(rows),
        )


def _rows(records: dict[str, RunRecord]) -> dict[str, Row]:
    return {row.title: row for row in compare_runs(list(records.values()), records[_REFERENCE])}


def _of(records: dict[str, RunRecord], ending: str) -> list[RunRecord]:
    return [record for title, record in records.items() if title.endswith(ending)]


def _accuracy(rows: dict[str, Row], title: str) -> float:
    return rows[title].test_accuracy or 0.0


def _decoding(record: RunRecord) -> float:
    """Median seconds a round spent on decoding."""
    return median(float(entry["decode_seconds"]) for entry in record.rounds)


def _count_corrupted(code: DetoxCode) -> float:
    """Groups of which most are bad, on average over rounds with liars drawn at random."""
    schedule = RandomWorkers(code.num_byzantine)
    found = []
    for step in range(_COUNTED):
        bad = schedule.byzantine(step, code.num_workers, seed=0)
        groups = code.at(step).groups
        found.append(sum(int(bad[list(group)].sum()) > len(group) // 2 for group in groups))
    return fmean(found)


def _plot(attack: str, records: list[RunRecord]) -> Plot:
    ends = "; ".join(f"{record.title} {percent(record.test_accuracy)}" for record in records)
    title = f"Test accuracy under attack: {attack}"
    return Plot(
        title,
        "Over rounds, on the test set.",
        f"{title}. {ends}.",
        partial(plot_accuracy, records),
    )
