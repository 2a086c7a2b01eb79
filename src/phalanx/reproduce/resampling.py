"""Resampling and bucketing: what data that differ cost robust rules, and what mixing wins back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from phalanx.reporting import Table
from phalanx.reproduce.base import (
    ACCURACY,
    NOT_QUOTED,
    Claim,
    Findings,
    Recipe,
    Scope,
    above,
    figures,
    points,
    published,
    to_points,
)
from phalanx.reproduce.robust_training import OtherTest, momentum, notes, robust_rules, side_by_side

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
_PICKED = ", ".join(_PICKING)
_IMAGES = ("mnist.npz",), "MNIST"
_BETAS = {"no momentum": 0.0, "momentum 0.9": 0.9}
_FALL = 5.0  # points of accuracy that are called a fall
_TOLD = published("resampling")
_PAPER = {
    (table, rule, *column.split(", ")): accuracy
    for table, logged in _TOLD["figures"].items()
    for rule, row in logged["rules"].items()
    for column, accuracy in zip(logged["columns"], row, strict=True)
}


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
    """Byzantine workers (f)."""
    num_honest: int = 20
    """Workers where nobody is Byzantine; 24 in full runs on MNIST, as in the paper."""
    steps: int | None = None
    """Rounds of a run; by default 200, 600 in full, and 4500 of the long tail on MNIST."""
    seeds: int | None = None
    """Runs of which the mean counts; by default 1, or 3 in full on digits."""

    def cells(self, scope: Scope) -> list[Cell]:
        """A long tail without attack, mimic, and other attacks on the rules that the paper has."""
        data = scope.images(*_IMAGES)
        given, byzantine = data.published, FixedWorkers(list(range(self.num_byzantine)))
        steps = self.steps or (600 if scope.full else 200)
        keep = 0.5 if given else 0.6
        attacked = self._sized(scope, self.num_workers, 32 if given else 16, steps)
        attacked |= {"byzantine": byzantine, "order": PerClient(ShardPartitioner())}
        honest, samples = 24 if given else self.num_honest, 32 if given else 8
        quiet = self._sized(scope, honest, samples, self.steps or (4500 if given else steps))
        quiet["data"] = OtherTest(data.source, tail=keep)
        splits = {_IID: IidPartitioner(), _DIFFERENT: ShardPartitioner()}
        tails, mimic = dict[str, Any](), dict[str, Any]()
        for name, split in splits.items():
            tails[name] = {"order": PerClient(LongTailedPartitioner(keep, split))}
            mimic[name] = {"order": PerClient(split), "attack": Mimic()}
        cells = self._grid(scope, _TAIL, tails, quiet) + self._grid(scope, _MIMIC, mimic, attacked)
        for name, attack in _ATTACKS.items():
            for column, beta in list(_BETAS.items())[: None if scope.full else 1]:
                staged = {column: {"attack": attack, **momentum(beta, published=given)}}
                cells += self._grid(scope, name, staged, attacked, beta)
        return [cell for cell in cells if _wanted(**cell.labels)]

    def _sized(self, scope: Scope, num_workers: int, samples: int, steps: int) -> dict[str, Any]:
        data = scope.images(*_IMAGES)
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
        scope: Scope,
        table: str,
        columns: Mapping[str, Mapping[str, Any]],
        fixed: Mapping[str, Any],
        beta: float = 0.0,
    ) -> list[Cell]:
        """All rules alone and after mixing."""
        given = scope.images(*_IMAGES).published
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
            seeds = range(self.seeds or (3 if scope.full and not given else 1))
            cells += grid(train_run, {**axes, "column": columns, "seed": seeds}, fixed)
        return cells

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Every rule with and without mixing, beside the authors' logs."""
        return Findings(
            answer=_answer(found),
            claims=_claims(found),
            tables=[_table(name, found) for name in (_TAIL, _MIMIC, *_ATTACKS)],
            notes=notes(scope.images(*_IMAGES), _TOLD),
        )


def _wanted(table: Any, rule: Any, before: Any, column: Any, **_: Any) -> bool:
    """Mixing leaves the mean as it is; some cells are in nobody's table."""
    if rule == "mean":
        return bool(before == _PLAIN)
    if before == _SAMPLES and (table == _TAIL or column == _IID):
        return False
    return table not in _ATTACKS or rule in _staged(table)


def _staged(attack: str) -> list[str]:
    """The rules for which the paper gives figures under an attack."""
    return list(dict.fromkeys(rule for table, rule, *_ in _PAPER if table == attack))


def _ours(
    found: Records, table: str, column: str, before: str, rules: Sequence[str] = _PICKING
) -> list[float | None]:
    return [points(found, table=table, rule=one, column=column, before=before) for one in rules]


def _paper(table: str, column: str, before: str, rules: Sequence[str] = _PICKING) -> str:
    return figures([_PAPER[table, rule, column, before] for rule in rules])


def _claims(found: Records) -> list[Claim]:
    alike, alone, mixed = (_IID, _PLAIN), (_DIFFERENT, _PLAIN), (_DIFFERENT, _BUCKETS)
    near = [(_PLAIN, _CLIPPING), (_BUCKETS, _CLIPPING), (_PLAIN, "mean")]
    clipped = [_ours(found, _MIMIC, _DIFFERENT, way, (rule,))[0] for way, rule in near]
    changes = [
        (
            _TAIL,
            (alike, alone),
            "Rules that pick lose the rare classes where data differ, though nobody attacks "
            f"({_PICKED}; iid, then non-iid).",
            -_FALL,
        ),
        (
            _TAIL,
            (alone, mixed),
            f"Buckets of two give part of it back ({_PICKED}; non-iid, alone, then in buckets).",
            1.0,
        ),
        (
            _MIMIC,
            (alike, alone),
            f"Mimic does little where data are alike and much where they differ ({_PICKED}; iid, "
            "then non-iid).",
            -_FALL,
        ),
        (
            _MIMIC,
            (alone, mixed),
            f"Buckets of two help against mimic ({_PICKED}; non-iid, alone, then in buckets).",
            1.0,
        ),
    ]
    return [
        *(_change(found, *one) for one in changes),
        *(_attacked(found, name) for name in _ATTACKS),
        Claim(
            "Centred clipping in buckets of two is within 3 points of the plain mean under mimic "
            "(non-iid: alone, in buckets, the mean).",
            figures([_PAPER[_MIMIC, rule, _DIFFERENT, way] for way, rule in near]),
            figures(clipped),
            [above(clipped[1], clipped[2], -3.0)],
        ),
        Claim(
            f"Resampling every message twice does what buckets of two do (mimic, non-iid: "
            f"{_PICKED}, {_CLIPPING}; resampled, then in buckets).",
            NOT_QUOTED,
            "; ".join(
                figures(_ours(found, _MIMIC, _DIFFERENT, way, _RULES[1:]))
                for way in (_SAMPLES, _BUCKETS)
            ),
        ),
    ]


def _change(
    found: Records,
    table: str,
    columns: Sequence[tuple[str, str]],
    text: str,
    by: float = 1.0,
    rules: Sequence[str] = _PICKING,
) -> Claim:
    """That rules go up, or down, from one column to another."""
    before, after = (_ours(found, table, *column, rules) for column in columns)
    pairs = zip(before, after, strict=True)
    shown = [above(b, a, by) if by > 0 else above(a, b, -by) for a, b in pairs]
    logged = "; ".join(_paper(table, *column, rules) for column in columns)
    return Claim(text, logged, f"{figures(before)}; {figures(after)}", shown)


def _attacked(found: Records, attack: str) -> Claim:
    """That buckets help under another attack; momentum apart."""
    rules, column = _staged(attack), next(iter(_BETAS))
    mean = figures(_ours(found, attack, column, _PLAIN, ("mean",)))
    text = (
        f"Buckets of two help under {attack} ({', '.join(rules)}; non-iid, no momentum, alone, "
        "then in buckets)."
    )
    made = _change(found, attack, [(column, _PLAIN), (column, _BUCKETS)], text, rules=rules)
    return replace(made, ours=f"{made.ours}; the plain mean {mean}")


def _answer(found: Records) -> str:
    alone, mixed = (figures(_ours(found, _MIMIC, _DIFFERENT, way)) for way in (_PLAIN, _BUCKETS))
    mean = figures(_ours(found, _MIMIC, _DIFFERENT, _PLAIN, ("mean",)))
    return (
        f"Under mimic on data that differ, {_PICKED} reached {alone} % test accuracy alone and "
        f"{mixed} % in buckets of two; the plain mean reached {mean} %."
    )


def _table(name: str, found: Records) -> Table:
    paper = {
        (rule, (column, before)): accuracy
        for (table, rule, column, before), accuracy in _PAPER.items()
        if table == name
    }
    ours = pivot(found.where(table=name), "rule", ("column", "before"), ACCURACY, to_points)
    caption = "Test accuracy in percent over the last five evaluations."
    return side_by_side(name.capitalize(), caption, ours, paper)
