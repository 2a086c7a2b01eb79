"""Resampling and bucketing: what data that differ cost robust rules, and what mixing wins back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch.optim import SGD

from phalanx.aggregation import Bucketing, PreAggregation, Resampling
from phalanx.attacks import (
    Attack,
    FixedWorkers,
    InnerProductManipulation,
    LabelFlip,
    Mimic,
    SignFlip,
)
from phalanx.data import IidPartitioner, LongTailedPartitioner, ShardPartitioner
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
from phalanx.reproduce.robust_training import OtherTest, momentum, robust_rules, side_by_side

_MIXED: dict[str, PreAggregation] = {"bucketing": Bucketing(2), "resampling": Resampling(2)}
_PLAIN, _BUCKETS, _SAMPLES = "alone", *_MIXED
_IID, _DIFFERENT = "iid", "non-iid"
_TAIL, _MIMIC = "long tail, no attack", "mimic"
_ATTACKS: dict[str, Attack] = {
    "inner product manipulation": InnerProductManipulation(0.1),
    "flipped signs": SignFlip(),
    "flipped labels": LabelFlip(),
}
_RULES = ("mean", "Krum", "median", "RFA", "centred clipping")
_PICKING, _CLIPPING = _RULES[1:4], _RULES[4]
_BETAS = {"no momentum": 0.0, "momentum 0.9": 0.9}
_FALL = 5.0  # points of accuracy that are called a fall
_ALIKE, _ALONE, _BUCKETED = (_IID, _PLAIN), (_DIFFERENT, _PLAIN), (_DIFFERENT, _BUCKETS)
_NO_MOMENTUM = [("no momentum", way) for way in (_PLAIN, _BUCKETS)]
_CHANGES = {
    "tail lost": (_TAIL, _ALIKE, _ALONE, -_FALL),
    "tail regained": (_TAIL, _ALONE, _BUCKETED, 1.0),
    "mimic": (_MIMIC, _ALIKE, _ALONE, -_FALL),
    "mimic in buckets": (_MIMIC, _ALONE, _BUCKETED, 1.0),
}


@dataclass(frozen=True)
class ResamplingAndBucketing(Recipe):
    """Robust rules on data that differ from worker to worker, alone and after mixing in pairs.

    Three tables: a long tail of classes without any attack, the mimic attack, and three others.
    A small network on scikit-learn's digits; in full LeNet on MNIST.

    Source: He, Karimireddy, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Resampling", arXiv 2006.09365v1, 2020; Karimireddy, He, Jaggi, "Byzantine-Robust Learning on
    Heterogeneous Datasets via Bucketing", ICLR 2022, experiments.
    """

    name: ClassVar[str] = "resampling"
    num_workers: int = 25
    """Workers (n)."""
    num_byzantine: int = 5
    """Byzantine workers (f)."""
    num_honest: int = 20
    """Workers where nobody is Byzantine; 24 in full runs on MNIST, as in the paper."""
    steps: int = sized(60, 200, 600)
    """Rounds of a run."""
    tail_steps: int = sized(60, 200, 4500)
    """Rounds of a run on a long tail."""
    seeds: int = 1
    """Runs of which the mean counts."""

    def cells(self, scope: Scope) -> list[Cell]:
        """A long tail without attack, mimic, and other attacks on the rules that the paper has."""
        data = self._images(scope)
        given, byzantine = data.published, FixedWorkers(list(range(self.num_byzantine)))
        keep = 0.5 if given else 0.6
        attacked = self._sized(scope, self.num_workers, 32 if given else 16, self.steps)
        attacked |= {"byzantine": byzantine, "order": PerClient(ShardPartitioner())}
        honest, samples = 24 if given else self.num_honest, 32 if given else 8
        quiet = self._sized(scope, honest, samples, self.tail_steps)
        quiet["data"] = OtherTest(data.source, tail=keep)
        splits = {_IID: IidPartitioner(), _DIFFERENT: ShardPartitioner()}
        tails, mimic = dict[str, Any](), dict[str, Any]()
        for name, split in splits.items():
            tails[name] = {"order": PerClient(LongTailedPartitioner(keep, split))}
            mimic[name] = {"order": PerClient(split), "attack": Mimic()}
        cells = self._grid(_TAIL, tails, quiet, given) + self._grid(_MIMIC, mimic, attacked, given)
        for name, attack in _ATTACKS.items():
            for column, beta in list(_BETAS.items())[: None if scope.full else 1]:
                staged = {column: {"attack": attack, **momentum(beta, published=given)}}
                cells += self._grid(name, staged, attacked, given, beta)
        return [cell for cell in cells if self._wanted(**cell.labels)]

    def _images(self, scope: Scope) -> Images:
        return scope.images(["mnist.npz"], "MNIST")

    def _sized(self, scope: Scope, num_workers: int, samples: int, steps: int) -> dict[str, Any]:
        data = self._images(scope)
        return {
            "data": data.source,
            "model": LeNet if data.published else MLP,
            "device": scope.device,
            "num_workers": num_workers,
            "batch_size": samples * num_workers,
            "steps": steps,
            "evaluate_every": max(1, steps // 20),
            "optimizer": partial(SGD, lr=0.01 if data.published else 0.1),
        }

    def _grid(
        self,
        table: str,
        columns: Mapping[str, Mapping[str, Any]],
        fixed: Mapping[str, Any],
        given: bool,
        beta: float = 0.0,
    ) -> list[Cell]:
        """All rules alone and after mixing."""
        # The sum of messages is 1 / (1 - beta) times as long as one, and so is the radius.
        radius = 10 / (1 - beta) if given else 1.0
        rules = robust_rules(0 if table == _TAIL else self.num_byzantine, radius, iterations=3)
        cells = []
        for before in (_PLAIN, *_MIXED):
            used = {
                name: _MIXED[before] >> rules[name] if before in _MIXED else rules[name]
                for name in _RULES
            }
            axes: dict[str, Any] = {"table": {table: {}}, "before": {before: {}}, "rule": used}
            axes |= {"column": columns, "seed": range(self.seeds)}
            cells += grid(train_run, axes, fixed)
        return cells

    def _wanted(self, table: Any, rule: Any, before: Any, column: Any, **_: Any) -> bool:
        """Mixing leaves the mean as it is; some cells are in nobody's table."""
        if rule == "mean":
            return bool(before == _PLAIN)
        if before == _SAMPLES and (table == _TAIL or column == _IID):
            return False
        return table not in _ATTACKS or rule in self.told["figures"][table]["rules"]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Every rule with and without mixing, beside the authors' logs."""
        images, parts = self._images(scope), Findings("", [])
        for key, (table, before, after, by) in _CHANGES.items():
            parts += self._change(found, key, table, (before, after), by)
        for attack in _ATTACKS:
            parts += self._change(found, "attacks", attack)
        near = [(_PLAIN, _CLIPPING), (_BUCKETS, _CLIPPING), (_PLAIN, "mean")]
        clipped, logged = (
            [of(_MIMIC, (_DIFFERENT, way), (rule,))[0] for way, rule in near]
            for of in (partial(_ours, found), self._paper)
        )
        values = {
            "data": images.origin,
            "rules": ", ".join(_PICKING),
            "all": ", ".join(_RULES[1:]),
            "alone": _ours(found, _MIMIC, _ALONE),
            "mixed": _ours(found, _MIMIC, _BUCKETED),
            "mean": clipped[2],
            "clipped": clipped,
            "logged": logged,
            "twice": [
                _ours(found, _MIMIC, (_DIFFERENT, way), _RULES[1:]) for way in (_SAMPLES, _BUCKETS)
            ],
        }
        holds = {"near the mean": [above(clipped[1], clipped[2], -3.0)], "resampling": None}
        notes = ("notes", "full" if images.published else "quick")
        parts += report(self.told, holds, values, answer="answer", notes=notes)
        for name in (_TAIL, _MIMIC, *_ATTACKS):
            read = unless_stopped("last_accuracies")
            ours = pivot(found.where(table=name), "rule", ("column", "before"), read, to_points)
            paper = {
                (str(row), key): self._paper(name, key, (row,))[0]  # type: ignore[arg-type]
                for row in ours.rows
                for key in ours.columns
            }
            caption = self.told["caption"]
            parts += side_by_side(name.capitalize(), caption, ours, paper, "{column}, {who}")
        return parts

    def _change(
        self,
        found: Records,
        key: str,
        table: str,
        columns: Sequence[tuple[str, str]] = _NO_MOMENTUM,
        by: float = 1.0,
    ) -> Findings:
        """That rules go up, or down, from one column to another."""
        rules = list(self.told["figures"][table]["rules"]) if table in _ATTACKS else _PICKING
        before, after = (_ours(found, table, column, rules) for column in columns)
        pairs = zip(before, after, strict=True)
        shown = [above(b, a, by) if by > 0 else above(a, b, -by) for a, b in pairs]
        paper = [self._paper(table, column, rules) for column in columns]
        values: dict[str, Any] = {"attack": table, "rules": ", ".join(rules), "paper": paper}
        values |= {"ours": [before, after], "mean": _ours(found, table, columns[0], ("mean",))}
        return report(self.told, {key: shown}, values)

    def _paper(
        self, table: str, column: tuple[str, str], rules: Sequence[str]
    ) -> list[float | None]:
        """The authors' figures; None where they have none."""
        logged = self.told["figures"][table]
        by_column = {
            name: dict(zip(logged["columns"], row, strict=True))
            for name, row in logged["rules"].items()
        }
        return [by_column.get(rule, {}).get(", ".join(column)) for rule in rules]


def _ours(
    found: Records, table: str, column: tuple[str, str], rules: Sequence[str] = _PICKING
) -> list[float | None]:
    where = {"table": table, "column": column[0], "before": column[1]}
    return [points(found, rule=one, **where) for one in rules]
