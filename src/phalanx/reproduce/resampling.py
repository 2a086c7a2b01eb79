"""Resampling and bucketing: what data that differ cost robust rules, and what mixing wins back."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch.optim import SGD

from phalanx.aggregation import Aggregator, Bucketing, CoordinateMedian, PreAggregation, Resampling
from phalanx.attacks import FixedWorkers, Mimic
from phalanx.data import IidPartitioner, LongTailedPartitioner, Partitioner, ShardPartitioner
from phalanx.experiments import Cell, Records, grid, pivot, train_run
from phalanx.models import MLP, LeNet
from phalanx.ordering import PerClient
from phalanx.reproduce.base import (
    Findings,
    Images,
    Recipe,
    Scope,
    above,
    points,
    report,
    sized,
    to_points,
    unless_stopped,
)
from phalanx.reproduce.robust_training import OtherTest, robust_rules, side_by_side

_MIXED: dict[str, PreAggregation] = {"bucketing": Bucketing(2), "resampling": Resampling(2)}
_PLAIN, _BUCKETS, _SAMPLES = _WAYS = "alone", *_MIXED
_IID, _DIFFERENT = "iid", "non-iid"
_TAIL, _MIMIC = "long tail, no attack", "mimic"
_RULES = ("mean", "Krum", "median", "RFA", "centred clipping")
_PICKING, _CLIPPING = _RULES[1:4], _RULES[4]
_FAILS = 10.0  # points of accuracy that are called a failure, or a recovery
_COPIES = (1, 2, 4)


@dataclass(frozen=True)
class ResamplingAndBucketing(Recipe):
    """Robust rules on data that differ from worker to worker, alone and after mixing in pairs.

    The mimic attack; a long tail of classes without any attack; and how far resampling may go. An
    MLP on MNIST, in full LeNet; at size quick the MLP on scikit-learn's digits.

    Source: He, Karimireddy, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Resampling", arXiv 2006.09365v1, 2020; Karimireddy, He, Jaggi, "Byzantine-Robust Learning on
    Heterogeneous Datasets via Bucketing", ICLR 2022, experiments.
    """

    name: ClassVar[str] = "resampling"
    num_workers: int = 25
    """Workers (n)."""
    num_byzantine: int = 5
    """Byzantine workers (f)."""
    few_byzantine: int = 3
    """Byzantine workers of the runs that resample more often."""
    num_honest: int = 24
    """Workers where nobody is Byzantine."""
    keep: float = 0.5
    """What a class keeps of what the class before keeps, on a long tail."""
    steps: int = sized(6, 300, 600)
    """Rounds of a run."""
    samples: int = sized(4, 16, 32)
    """Samples per worker and round."""
    seeds: int = sized(1, 3, 3)
    """Runs of which the mean counts."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Mimic, a long tail without attack, and messages that are used more often."""
        data, byzantine = self._images(scope).source, list(range(self.num_byzantine))
        attacked = self._sized(scope, self.num_workers)
        attacked |= {"attack": Mimic(), "byzantine": FixedWorkers(byzantine)}
        quiet = self._sized(scope, self.num_honest) | {"data": OtherTest(data, tail=self.keep)}
        splits: dict[str, Partitioner] = {_IID: IidPartitioner(), _DIFFERENT: ShardPartitioner()}
        columns = [(_IID, _PLAIN), *((_DIFFERENT, way) for way in _WAYS)]
        cells = list[Cell]()
        for split, way in columns:
            order = splits[split]
            cells += self._grid(_MIMIC, split, way, self.num_byzantine, attacked, order)
            if way != _SAMPLES:
                tailed = LongTailedPartitioner(self.keep, order)
                cells += self._grid(_TAIL, split, way, 0, quiet, tailed)
        return [*cells, *self._copies(attacked)]

    def _copies(self, attacked: dict[str, Any]) -> list[Cell]:
        """Every message used once, twice and more often, by two rules."""
        few = FixedWorkers(list(range(self.few_byzantine)))
        fixed = attacked | {"byzantine": few, "order": PerClient(ShardPartitioner())}
        rules = robust_rules(self.few_byzantine, 1.0, iterations=3)
        used = {
            name: {copies: Resampling(copies) >> rules[name] for copies in _COPIES}
            for name in ("median", "RFA")
        }
        seeds = {"seed": range(self.seeds)}
        return [
            cell
            for name, by in used.items()
            for copies, rule in by.items()
            for cell in grid(
                train_run, {"copies": {copies: {}}, "rule": {name: {"rule": rule}}, **seeds}, fixed
            )
        ]

    def _grid(
        self,
        table: str,
        split: str,
        way: str,
        byzantine: int,
        fixed: dict[str, Any],
        partitioner: Partitioner,
    ) -> list[Cell]:
        """All rules on one split, alone or after mixing, which leaves the mean as it is."""
        rules = robust_rules(byzantine, 1.0, iterations=3)
        used = {
            name: _MIXED[way] >> rules[name] if way in _MIXED else rules[name]
            for name in _RULES
            if name != "mean" or way == _PLAIN
        }
        axes: dict[str, Any] = {"table": {table: {}}, "column": {split: {}}, "before": {way: {}}}
        axes |= {"rule": used, "seed": range(self.seeds)}
        return grid(train_run, axes, fixed | {"order": PerClient(partitioner)})

    def _images(self, scope: Scope) -> Images:
        return scope.images(["mnist.npz"], "MNIST", sizes=("default", "full"))

    def _sized(self, scope: Scope, num_workers: int) -> dict[str, Any]:
        return {
            "data": self._images(scope).source,
            "model": LeNet if scope.full else MLP,
            "device": scope.device,
            "num_workers": num_workers,
            "batch_size": self.samples * num_workers,
            "steps": self.steps,
            "evaluate_every": max(1, self.steps // 20),
            "optimizer": partial(SGD, lr=0.05),
        }

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Every rule with and without mixing, beside the authors' logs; how far mixing may go."""
        tables = Records(one for one in found if "table" in one.labels)
        copied = Records(one for one in found if "copies" in one.labels)
        read = unless_stopped("last_accuracies")

        def of(table: str, column: str, way: str, *rules: str) -> list[float | None]:
            where = {"table": table, "column": column, "before": way}
            return [points(tables, rule=one, **where) for one in rules]

        alike = {name: of(name, _IID, _PLAIN, *_PICKING) for name in (_MIMIC, _TAIL)}
        alone = {name: of(name, _DIFFERENT, _PLAIN, *_PICKING) for name in (_MIMIC, _TAIL)}
        mixed = {name: of(name, _DIFFERENT, _BUCKETS, *_PICKING) for name in (_MIMIC, _TAIL)}
        twice = of(_MIMIC, _DIFFERENT, _SAMPLES, *_PICKING)
        (mean,) = of(_MIMIC, _DIFFERENT, _PLAIN, "mean")
        clipped = [of(_MIMIC, _DIFFERENT, way, _CLIPPING)[0] for way in _WAYS]
        copies = {
            rule: [points(copied, rule=rule, copies=one) for one in _COPIES]
            for rule in ("median", "RFA")
        }
        most = most_copies(self.num_workers, self.num_byzantine)
        values = {
            "recipe": self,
            "data": self._images(scope).origin,
            "rules": ", ".join(_PICKING),
            "mean": mean,
            "clipped": clipped,
            "mimic": [alike[_MIMIC], alone[_MIMIC], mixed[_MIMIC], twice],
            "tail": [alike[_TAIL], alone[_TAIL], mixed[_TAIL]],
            "copies": copies,
            "numbers": _COPIES,
            "most": most,
            "paper": {name: self._paper(name) for name in (_MIMIC, _TAIL)},
        }
        pairs = {
            "mimic": (alone[_MIMIC], alike[_MIMIC]),
            "mimic in buckets": (alone[_MIMIC], mixed[_MIMIC]),
            "resampling": (alone[_MIMIC], twice),
            "tail": (alone[_TAIL], alike[_TAIL]),
            "tail in buckets": (alone[_TAIL], mixed[_TAIL]),
        }
        holds: dict[str, Any] = {
            key: [above(more, less, _FAILS) for less, more in zip(*pair, strict=True)]
            for key, pair in pairs.items()
        }
        holds |= {"near": [above(clipped[1], mean, -3.0)], "limit": [most == _bound(self)]}
        best = max(one or 0.0 for one in (*mixed[_MIMIC], *twice, *clipped))
        answer = "mean suffices" if above(mean, best, -2.0) else "answer"
        parts = report(self.told, holds, values, answer=answer)
        for name in (_MIMIC, _TAIL):
            where = found.where(table=name)
            ours = pivot(where, "rule", ("column", "before"), read, to_points)
            logged = self.told["figures"][name]
            paper = {
                (rule, tuple(column.split(", "))): figure
                for rule, row in logged["rules"].items()
                for column, figure in zip(logged["columns"], row, strict=True)
            }
            caption = self.told["caption"]
            parts += side_by_side(name.capitalize(), caption, ours, paper, "{column}, {who}")
        return parts

    def _paper(self, table: str) -> list[Any]:
        """The authors' figures of the rules that pick, by column: iid, non-iid, in buckets."""
        logged = self.told["figures"][table]
        order = [
            logged["columns"].index(f"{a}, {b}")
            for a, b in ((_IID, _PLAIN), (_DIFFERENT, _PLAIN), (_DIFFERENT, _BUCKETS))
        ]
        return [[logged["rules"][rule][place] for rule in _PICKING] for place in order]


def _bound(recipe: ResamplingAndBucketing) -> int:
    """The largest s with s f < n / 2."""
    return (recipe.num_workers - 1) // (2 * recipe.num_byzantine)


def most_copies(num_workers: int, num_byzantine: int) -> int:
    """How often the package lets messages be used before it refuses the rule."""

    def fits(rule: Aggregator) -> bool:
        try:
            return rule.num_tolerated(num_workers) == num_byzantine
        except ValueError:
            return False

    rule = CoordinateMedian(num_byzantine)
    return sum(fits(Resampling(copies) >> rule) for copies in range(1, num_workers))
