"""Resampling and bucketing: what data that differ cost robust rules, and what mixing wins back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch.utils.data import TensorDataset

from phalanx.aggregation import Aggregator, Bucketing, Mean, PreAggregation, Resampling
from phalanx.attacks import Attack, InnerProductManipulation, LabelFlip, Mimic, SignFlip
from phalanx.data import (
    IidPartitioner,
    LongTailedPartitioner,
    Partitioner,
    ShardPartitioner,
    Splits,
)
from phalanx.models import MLP, LeNet
from phalanx.randomness import generator
from phalanx.reporting import Table
from phalanx.reproduce.base import (
    NOT_QUOTED,
    Finding,
    Findings,
    Progress,
    Recipe,
    above,
    figures,
    verdict,
)
from phalanx.reproduce.full_runs import device_for, images
from phalanx.reproduce.training_runs import Trials, robust_rules
from phalanx.transforms import WorkerMomentum


class _Place(NamedTuple):
    """Where an accuracy stands: the table, its row, and the two halves of its column."""

    table: str
    rule: str
    column: str
    before: str


_Figures = dict[_Place, float | None]
_MIXED: dict[str, PreAggregation] = {"bucketing": Bucketing(2), "resampling": Resampling(2)}
_PLAIN, _BUCKETS, _SAMPLES = "alone", *_MIXED
_IID, _DIFFERENT = "iid", "non-iid"
_TAIL, _MIMIC = "long tail, no attack", "mimic"
_ATTACKS: dict[str, Attack] = {
    "inner product manipulation": InnerProductManipulation(0.1),
    "flipped signs": SignFlip(),
    "flipped labels": LabelFlip(),
}
_IPM, _SIGNS, _LABELS = _ATTACKS
_RULES = ("mean", "Krum", "median", "RFA", "centred clipping")
_PICKING = _RULES[1:4]
_CLIPPING = _RULES[4]
_BETAS = {"no momentum": 0.0, "momentum 0.9": 0.9}
_FALL = 5.0  # points of accuracy that are called a fall

# Rows of the papers' tables: iid, non-iid, then the same two with buckets of 2.
_LOGGED = {
    _TAIL: {
        "mean": (98.8, 98.8, None, None),
        "Krum": (98.0, 89.9, 98.4, 93.3),
        "median": (97.7, 80.4, 98.3, 95.6),
        "RFA": (98.6, 82.6, 98.8, 97.3),
        _CLIPPING: (98.8, 98.8, 98.8, 98.8),
    },
    _MIMIC: {
        "mean": (93.2, 92.7, None, None),
        "Krum": (90.4, 37.3, 91.6, 53.2),
        "median": (90.8, 64.3, 91.9, 78.6),
        "RFA": (92.9, 78.9, 93.0, 91.2),
        _CLIPPING: (93.2, 91.5, 93.2, 92.6),
    },
}
# Rule under attack on non-iid data: without momentum, with it, then the same with buckets of 2.
_STAGED = {
    (_IPM, "RFA"): (14.6, 13.5, 90.6, 95.9),
    (_SIGNS, "RFA"): (68.8, 82.8, 87.6, 96.8),
    (_SIGNS, _CLIPPING): (75.2, 97.7, 91.7, 97.7),
    (_LABELS, "median"): (35.6, 50.6, 52.7, 70.6),
    (_LABELS, "Krum"): (1.0, 1.0, 20.2, 43.3),
}


def _paper() -> _Figures:
    """The papers' accuracies, by the places of ours."""
    rows: list[tuple[str, str, tuple[str, ...], tuple[float | None, ...]]] = [
        (table, rule, (_IID, _DIFFERENT), logged)
        for table, rules in _LOGGED.items()
        for rule, logged in rules.items()
    ]
    rows += [(attack, rule, tuple(_BETAS), four) for (attack, rule), four in _STAGED.items()]
    return {
        _Place(table, rule, column, before): four[2 * second + first]
        for table, rule, columns, four in rows
        for second, before in enumerate((_PLAIN, _BUCKETS))
        for first, column in enumerate(columns)
    }


_PAPER = _paper()
_NOTES = (
    "The papers' figures are recomputed from the logs that their authors published (MNIST, a "
    "network of two convolutions, three seeds). The shape is compared, not the figure.",
    "Non-iid: the honest workers share the data sorted by class, the bad ones hold random samples. "
    "Long tail: every class keeps a fixed share of what the class before keeps, in the test set "
    "too; there nobody is bad.",
    "The published figures are those of buckets of two (2022); resampling every message twice "
    "(2020), where twice as many mixtures may be bad, stands beside them.",
    "RFA takes three Weiszfeld steps, as in the papers; they start from the mean of the more than "
    "half of the messages that lie closest together.",
    "Mixing does not help always: where a rule's bound is close, twice as many bad mixtures may "
    "cost more than smaller differences win.",
)
_QUICK_NOTES = (
    "Here: one hidden layer of 64 on digits, learning rate 0.1, momentum as an average, centred "
    "clipping with radius 1 and three iterations, a long tail of 0.6 instead of 0.5.",
)
_FULL_NOTES = (
    "Unlike in the papers: LeNet instead of their network, one seed, and 600 rounds under every "
    "attack. As there: learning rate 0.01, 32 samples a worker, momentum as a sum, centred "
    "clipping with radius 10 / (1 - beta) and three iterations, a long tail of 0.5.",
)


@dataclass(frozen=True)
class ResamplingAndBucketing(Recipe):
    """Robust rules on data that differ from worker to worker, alone and after mixing in pairs.

    Three tables: a long tail of classes without any attack, the mimic attack, and three others.
    In quick mode a small network on scikit-learn's digits; in full LeNet on MNIST, if the data is
    there; that is meant for a GPU.

    Cost: in quick mode under two minutes on one core.
    Source: He, Karimireddy, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Resampling", arXiv 2006.09365v1, 2020; Karimireddy, He, Jaggi, "Byzantine-Robust Learning on
    Heterogeneous Datasets via Bucketing", ICLR 2022, experiments.
    """

    name: ClassVar[str] = "resampling"
    paper: ClassVar[str] = (
        "He, Karimireddy and Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via "
        "Resampling, 2020; Karimireddy, He and Jaggi, ... via Bucketing, ICLR 2022"
    )

    num_workers: int = 25
    """Workers (n)."""

    num_byzantine: int = 5
    """Workers that are bad (f)."""

    num_honest: int = 20
    """Workers where nobody is bad; 24 in full runs on MNIST, as in the paper."""

    steps: int | None = None
    """Rounds a run; by default 200, 600 in full, and 4500 of the long tail on MNIST."""

    seeds: int | None = None
    """Runs of which the mean counts; by default 1, or 3 in full on digits."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Trains with every rule; `data` is a file of MNIST, or the folder of one."""
        splits, origin, published = images(data if full else None, ("mnist.npz",), "MNIST")
        seeds = self.seeds or (3 if full and not published else 1)
        trials = Trials(
            splits,
            LeNet if published else MLP,
            self.num_workers,
            samples=32 if published else 16,
            steps=self.steps or (600 if full else 200),
            rate=0.01 if published else 0.1,
            seeds=range(seeds),
            device=device_for(full),
        )
        found = self._long_tail(trials, published, progress)
        found |= self._mimic(trials, published, progress)
        found |= self._attacked(trials, published, full, progress)
        return Findings(
            answer=_answer(found),
            findings=_findings(found),
            tables=tuple(_table(name, found) for name in (_TAIL, _MIMIC, *_ATTACKS)),
            notes=(f"Data: {origin}.", *_NOTES, *(_FULL_NOTES if published else _QUICK_NOTES)),
            settings={
                "workers": self.num_workers,
                "bad_workers": self.num_byzantine,
                "workers_of_the_long_tail": self._honest(published),
                "rounds": trials.steps,
                "samples_a_worker": trials.samples,
                "seeds": seeds,
                "full": full,
            },
        )

    def _honest(self, published: bool) -> int:
        return 24 if published else self.num_honest

    def _long_tail(self, trials: Trials, published: bool, progress: Progress) -> _Figures:
        """Nobody is bad: what rules lose on data that differ is their own doing."""
        keep = 0.5 if published else 0.6
        trials = replace(
            trials,
            num_workers=self._honest(published),
            samples=32 if published else 8,
            steps=self.steps or (4500 if published else trials.steps),
        )
        test = _thinned(trials.splits, keep)
        splits = {_IID: IidPartitioner(), _DIFFERENT: ShardPartitioner()}
        found: _Figures = {}
        for (rule, before), used in _pairs(0, _radius(0.0, published), (_PLAIN, _BUCKETS)).items():
            for column, split in splits.items():
                progress(f"training: {_TAIL}, {column}, {rule} {before}")
                found[_Place(_TAIL, rule, column, before)] = trials.accuracy(
                    used, shards=LongTailedPartitioner(keep, split), test=test
                )
        return found

    def _mimic(self, trials: Trials, published: bool, progress: Progress) -> _Figures:
        """The attack that data that differ make possible."""
        splits: dict[str, Partitioner] = {_IID: IidPartitioner(), _DIFFERENT: ShardPartitioner()}
        found: _Figures = {}
        for (rule, before), used in _pairs(
            self.num_byzantine, _radius(0.0, published), (_PLAIN, *_MIXED)
        ).items():
            for column, split in splits.items():
                if (column, before) == (_IID, _SAMPLES):
                    continue
                progress(f"training: {_MIMIC}, {column}, {rule} {before}")
                found[_Place(_MIMIC, rule, column, before)] = trials.accuracy(
                    used, Mimic(), self.num_byzantine, shards=split
                )
        return found

    def _attacked(
        self, trials: Trials, published: bool, full: bool, progress: Progress
    ) -> _Figures:
        """Other attacks, for the rules of which the paper gives figures, and the mean."""
        found: _Figures = {}
        for column, beta in _BETAS.items() if full else list(_BETAS.items())[:1]:
            momentum = WorkerMomentum(beta, "sum" if published else "average") if beta else None
            pairs = _pairs(self.num_byzantine, _radius(beta, published), (_PLAIN, *_MIXED))
            for (rule, before), used in pairs.items():
                for name, attack in _ATTACKS.items():
                    if rule != "mean" and (name, rule) not in _STAGED:
                        continue
                    progress(f"training: {name}, {column}, {rule} {before}")
                    found[_Place(name, rule, column, before)] = trials.accuracy(
                        used,
                        attack,
                        self.num_byzantine,
                        worker_momentum=momentum,
                        shards=ShardPartitioner(),
                    )
        return found


def _radius(beta: float, published: bool) -> float:
    """Of centred clipping: the sum of messages is 1 / (1 - beta) times as long as one."""
    return 10 / (1 - beta) if published else 1.0


def _pairs(
    num_byzantine: int, radius: float, ways: Sequence[str]
) -> dict[tuple[str, str], Aggregator]:
    """Rules alone and after mixing, by name and way; mixing leaves the mean as it is."""
    rules = robust_rules(num_byzantine, radius, iterations=3)
    found: dict[tuple[str, str], Aggregator] = {("mean", _PLAIN): Mean()}
    for name in _RULES[1:]:
        for way in ways:
            alone = rules[name]
            found[name, way] = alone if way == _PLAIN else _MIXED[way] >> alone
    return found


def _thinned(splits: Splits, keep: float) -> TensorDataset:
    """The test set with a long tail."""
    inputs, targets = splits.test[:]
    (kept,) = LongTailedPartitioner(keep).split(targets, 1, generator(0, "long tail"))
    return TensorDataset(inputs[kept], targets[kept])


def _of(
    every: _Figures, table: str, column: str, before: str, rules: Sequence[str] = _PICKING
) -> list[float | None]:
    return [every[_Place(table, rule, column, before)] for rule in rules]


def _both(table: str, column: str, before: str, found: _Figures) -> tuple[str, str]:
    """The paper's figures and ours, of the rules that pick."""
    return (
        figures(_of(_PAPER, table, column, before)),
        figures(_of(found, table, column, before)),
    )


def _findings(found: _Figures) -> tuple[Finding, ...]:
    picking = ", ".join(_PICKING)
    return (
        _change(
            found,
            _TAIL,
            (_IID, _PLAIN),
            (_DIFFERENT, _PLAIN),
            f"Rules that pick lose the rare classes where data differ, though nobody attacks "
            f"({picking}; iid, then non-iid).",
            -_FALL,
        ),
        _change(
            found,
            _TAIL,
            (_DIFFERENT, _PLAIN),
            (_DIFFERENT, _BUCKETS),
            f"Buckets of two give part of it back ({picking}; non-iid, alone, then in buckets).",
            1.0,
        ),
        _change(
            found,
            _MIMIC,
            (_IID, _PLAIN),
            (_DIFFERENT, _PLAIN),
            f"Mimic does little where data are alike and much where they differ ({picking}; iid, "
            "then non-iid).",
            -_FALL,
        ),
        _change(
            found,
            _MIMIC,
            (_DIFFERENT, _PLAIN),
            (_DIFFERENT, _BUCKETS),
            f"Buckets of two help against mimic ({picking}; non-iid, alone, then in buckets).",
            1.0,
        ),
        *_attack_findings(found),
        _near_the_mean(found),
        Finding(
            f"Resampling every message twice does what buckets of two do (mimic, non-iid: "
            f"{picking}, {_CLIPPING}; resampled, then in buckets).",
            NOT_QUOTED,
            "; ".join(
                figures(_of(found, _MIMIC, _DIFFERENT, before, _RULES[1:]))
                for before in (_SAMPLES, _BUCKETS)
            ),
            "—",
        ),
    )


def _change(
    found: _Figures,
    table: str,
    one: tuple[str, str],
    other: tuple[str, str],
    claim: str,
    by: float,
) -> Finding:
    """That the rules that pick go up, or down, from one column to another."""
    before, after = (_both(table, *column, found) for column in (one, other))
    pairs = zip(_of(found, table, *one), _of(found, table, *other), strict=True)
    shown = [above(b, a, by) if by > 0 else above(a, b, -by) for a, b in pairs]
    return Finding(claim, f"{before[0]}; {after[0]}", f"{before[1]}; {after[1]}", verdict(shown))


def _attack_findings(found: _Figures) -> list[Finding]:
    """That buckets help under the other attacks, one finding an attack; momentum apart."""
    made = []
    for name in _ATTACKS:
        rules = [rule for attack, rule in _STAGED if attack == name]
        column = next(iter(_BETAS))
        plain, mixed = (_of(found, name, column, way, rules) for way in (_PLAIN, _BUCKETS))
        logged = [_of(_PAPER, name, column, way, rules) for way in (_PLAIN, _BUCKETS)]
        mean = found[_Place(name, "mean", column, _PLAIN)]
        made.append(
            Finding(
                f"Buckets of two help under {name} ({', '.join(rules)}; non-iid, no momentum, "
                "alone, then in buckets).",
                "; ".join(map(figures, logged)),
                f"{figures(plain)}; {figures(mixed)}; the plain mean {figures([mean])}",
                verdict([above(b, a, 1.0) for a, b in zip(plain, mixed, strict=True)]),
            )
        )
    return made


def _near_the_mean(found: _Figures) -> Finding:
    rows = [(_PLAIN, _CLIPPING), (_BUCKETS, _CLIPPING), (_PLAIN, "mean")]
    ours, paper = (
        [every[_Place(_MIMIC, rule, _DIFFERENT, way)] for way, rule in rows]
        for every in (found, _PAPER)
    )
    return Finding(
        "Centred clipping in buckets of two is within 3 points of the plain mean under mimic "
        "(non-iid: alone, in buckets, the mean).",
        figures(paper),
        figures(ours),
        verdict([above(ours[1], ours[2], -3.0)]),
    )


def _answer(found: _Figures) -> str:
    alone, mixed = (_of(found, _MIMIC, _DIFFERENT, way) for way in (_PLAIN, _BUCKETS))
    mean = found[_Place(_MIMIC, "mean", _DIFFERENT, _PLAIN)]
    return (
        f"Under mimic on data that differ, {', '.join(_PICKING)} reached {figures(alone)} % test "
        f"accuracy alone and {figures(mixed)} % in buckets of two; the plain mean reached "
        f"{figures([mean])} %."
    )


def _table(name: str, found: _Figures) -> Table:
    """The papers' figures and ours side by side, as far as there are any."""
    columns = list(dict.fromkeys((p.column, p.before) for p in found if p.table == name))
    rules = list(dict.fromkeys(p.rule for p in found if p.table == name))
    headers = ["rule"]
    values: list[list[float | None]] = [[] for _ in rules]
    for column, before in columns:
        places = [_Place(name, rule, column, before) for rule in rules]
        for who, every in (("paper", _PAPER), ("ours", found)):
            if any(place in every for place in places):
                headers.append(f"{column}, {before}, {who}")
                for row, place in zip(values, places, strict=True):
                    row.append(every.get(place))
    return Table(
        name.capitalize(),
        "Test accuracy in percent over the last five evaluations.",
        tuple(headers),
        tuple((rule, *row) for rule, row in zip(rules, values, strict=True)),
    )
