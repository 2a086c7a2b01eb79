"""Resampling and bucketing: what data that differ cost robust rules, and what mixing wins back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
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
    Images,
    Recipe,
    Scope,
    above,
    figures,
    points,
    published,
    to_points,
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
_PICKED = ", ".join(_PICKING)
_BETAS = {"no momentum": 0.0, "momentum 0.9": 0.9}
_FALL = 5.0  # points of accuracy that are called a fall
_PAPER = {
    (table, rule, *column.split(", ")): accuracy
    for table, logged in published("resampling").items()
    for rule, row in logged["rules"].items()
    for column, accuracy in zip(logged["columns"], row, strict=True)
}
_NOTES = (
    "The papers' figures are recomputed from the logs that their authors published (MNIST, a "
    "network of two convolutions, three seeds). The shape is compared, not the figure.",
    "Non-iid: the honest workers share the data sorted by class, the Byzantine ones hold random "
    "samples. Long tail: every class keeps a fixed share of what the class before keeps, in the "
    "test set too; there nobody is Byzantine.",
    "The published figures are those of buckets of two (2022); resampling every message twice "
    "(2020), where twice as many mixtures may be Byzantine, stands beside them.",
    "RFA takes three Weiszfeld steps, as in the papers; they start from the mean of the more than "
    "half of the messages that lie closest together.",
    "Mixing does not help always: where a rule's bound is close, twice as many Byzantine mixtures "
    "may cost more than smaller differences win.",
)
_QUICK_NOTE = (
    "Here: one hidden layer of 64 on digits, learning rate 0.1, momentum as an average, centred "
    "clipping with radius 1 and three iterations, a long tail of 0.6 instead of 0.5."
)
_FULL_NOTE = (
    "Unlike in the papers: LeNet instead of their network, one seed, and 600 rounds under every "
    "attack. As there: learning rate 0.01, 32 samples per worker, momentum as a sum, centred "
    "clipping with radius 10 / (1 - beta) and three iterations, a long tail of 0.5."
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
    """Byzantine workers (f)."""
    num_honest: int = 20
    """Workers where nobody is Byzantine; 24 in full runs on MNIST, as in the paper."""
    steps: int | None = None
    """Rounds of a run; by default 200, 600 in full, and 4500 of the long tail on MNIST."""
    seeds: int | None = None
    """Runs of which the mean counts; by default 1, or 3 in full on digits."""

    def cells(self, scope: Scope) -> list[Cell]:
        """A long tail without attack, mimic, and other attacks on the rules that the paper has."""
        data, steps = self._images(scope), self._steps(scope)
        splits = {_IID: IidPartitioner(), _DIFFERENT: ShardPartitioner()}
        keep = 0.5 if data.published else 0.6
        tails = {
            name: {"order": PerClient(LongTailedPartitioner(keep, split))}
            for name, split in splits.items()
        }
        long = 4500 if data.published and self.steps is None else steps
        test, honest = OtherTest(data.source, tail=keep), self._honest(scope)
        thinned = self._fixed(scope, long, honest, 32 if data.published else 8) | {"data": test}
        cells = self._grid(scope, _TAIL, tails, (_PLAIN, _BUCKETS), thinned, num_byzantine=0)

        fixed = self._fixed(scope, steps, self.num_workers, 32 if data.published else 16)
        fixed["byzantine"] = FixedWorkers(list(range(self.num_byzantine)))
        ways = (_PLAIN, *_MIXED)
        mimic = {
            name: {"order": PerClient(split), "attack": Mimic()} for name, split in splits.items()
        }
        found = self._grid(scope, _MIMIC, mimic, ways, fixed, self.num_byzantine)
        doubled = {"column": _IID, "before": _SAMPLES}  # of no interest
        cells += [one for one in found if not doubled.items() <= one.labels.items()]

        fixed["order"] = PerClient(ShardPartitioner())
        for name, attack in _ATTACKS.items():
            for column, beta in list(_BETAS.items())[: None if scope.full else 1]:
                staged = {column: {"attack": attack, **momentum(beta, published=data.published)}}
                found = self._grid(scope, name, staged, ways, fixed, self.num_byzantine, beta)
                cells += [one for one in found if one.labels["rule"] in ("mean", *_staged(name))]
        return cells

    def _images(self, scope: Scope) -> Images:
        return scope.images(("mnist.npz",), "MNIST")

    def _honest(self, scope: Scope) -> int:
        return 24 if self._images(scope).published else self.num_honest

    def _steps(self, scope: Scope) -> int:
        return self.steps or (600 if scope.full else 200)

    def _fixed(self, scope: Scope, steps: int, num_workers: int, samples: int) -> dict[str, Any]:
        data = self._images(scope)
        return {
            "data": data.source,
            "model": LeNet if data.published else MLP,
            "num_workers": num_workers,
            "batch_size": samples * num_workers,
            "steps": steps,
            "evaluate_every": max(1, steps // 20),
            "optimizer": partial(SGD, lr=0.01 if data.published else 0.1),
            "device": scope.device,
        }

    def _grid(
        self,
        scope: Scope,
        table: str,
        columns: Mapping[str, Mapping[str, Any]],
        ways: Sequence[str],
        fixed: Mapping[str, Any],
        num_byzantine: int,
        beta: float = 0.0,
    ) -> list[Cell]:
        """All rules alone and after mixing; mixing leaves the mean as it is."""
        given = self._images(scope).published
        # The sum of messages is 1 / (1 - beta) times as long as one, and so is the radius.
        rules = robust_rules(num_byzantine, 10 / (1 - beta) if given else 1.0, iterations=3)
        cells = []
        for rule, way in product(_RULES, ways):
            if rule != "mean" or way == _PLAIN:
                used = _MIXED[way] >> rules[rule] if way in _MIXED else rules[rule]
                seeds = range(self.seeds or (3 if scope.full and not given else 1))
                axes: dict[str, Any] = {"table": {table: {}}, "rule": {rule: used}}
                axes |= {"before": {way: {}}, "column": columns, "seed": seeds}
                cells += grid(train_run, axes, fixed)
        return cells

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Every rule with and without mixing, beside the authors' logs."""
        data = self._images(scope)
        return Findings(
            answer=_answer(found),
            claims=_claims(found),
            tables=[_table(name, found) for name in (_TAIL, _MIMIC, *_ATTACKS)],
            notes=(f"Data: {data.origin}.", *_NOTES, _FULL_NOTE if data.published else _QUICK_NOTE),
        )


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
    alone, mixed = (_DIFFERENT, _PLAIN), (_DIFFERENT, _BUCKETS)
    near = [(_PLAIN, _CLIPPING), (_BUCKETS, _CLIPPING), (_PLAIN, "mean")]
    clipped = [_ours(found, _MIMIC, _DIFFERENT, way, (rule,))[0] for way, rule in near]
    return [
        _change(
            found,
            _TAIL,
            ((_IID, _PLAIN), alone),
            f"Rules that pick lose the rare classes where data differ, though nobody attacks "
            f"({_PICKED}; iid, then non-iid).",
            -_FALL,
        ),
        _change(
            found,
            _TAIL,
            (alone, mixed),
            f"Buckets of two give part of it back ({_PICKED}; non-iid, alone, then in buckets).",
        ),
        _change(
            found,
            _MIMIC,
            ((_IID, _PLAIN), alone),
            f"Mimic does little where data are alike and much where they differ ({_PICKED}; iid, "
            "then non-iid).",
            -_FALL,
        ),
        _change(
            found,
            _MIMIC,
            (alone, mixed),
            f"Buckets of two help against mimic ({_PICKED}; non-iid, alone, then in buckets).",
        ),
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
