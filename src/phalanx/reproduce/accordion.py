"""Accordion: accuracy, bytes and time of two levels of compression, and of the change between."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

from phalanx.batch_size import AccordionBatch
from phalanx.compression import Accordion, Compressor, ErrorFeedback, PowerSGD, TopK, Uncompressed
from phalanx.experiments import Cell, Records, grid, load
from phalanx.reproduce.accordion_runs import batch_run, level_run
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized, words
from phalanx.reproduce.cifar_training import (
    BANDWIDTHS,
    NUM_WORKERS,
    cifar10,
    convolutional,
    round_costs,
    seconds_per_round,
)

_LOW, _HIGH, _ACCORDION = _LEVELS = ("low compression", "high compression", "Accordion")
_BLIND = ("low first, high after", "high first, low after")
_PLAIN, *_ = _KINDS = ("top-k", "top-k, error feedback", "PowerSGD")
_BATCHES, _DENSE = "batch size", "none"
_LOST = 10.0  # points that high compression has to cost for a setting to show what is kept


@dataclass(frozen=True)
class AccordionRecipe(Recipe):
    """Static levels of compression, Accordion between them, and batches that grow.

    Source: Agarwal, Wang, Lee, Venkataraman and Papailiopoulos, "Adaptive Gradient Communication
    via Critical Learning Regime Identification", MLSys 2021, and the logs its authors published.
    """

    name: ClassVar[str] = "accordion"

    epochs: int = sized(6, 6, 60)
    """Of every run; the learning rate falls to a tenth after a half, and again after 5/6."""
    interval: int = sized(1, 1, 2)
    """Epochs from one look at the norms to the next: the paper's are 10 of 300."""
    top_k: tuple[float, float] = (0.1, 0.001)
    """Shares kept at low and high compression, with and without error feedback."""
    ranks: tuple[int, int] = (4, 1)
    """Ranks of PowerSGD, with error feedback."""
    batch_sizes: tuple[int, int] = (32, 256)
    """Batches of critical regimes, and elsewhere."""
    samples: int = 64
    """Per worker and round; there are four workers."""
    rate: float = 0.05
    """Learning rate of all compressed runs at first."""
    seeds: int = sized(1, 2, 5)
    """Runs of each kind."""

    @property
    def pairs(self) -> Mapping[str, tuple[Compressor, Compressor]]:
        """Low and high compression of every kind; and none, for plain SGD."""
        low, high = (TopK(ratio) for ratio in self.top_k)
        ranks = [ErrorFeedback(PowerSGD(rank)) for rank in self.ranks]
        found = [(low, high), (ErrorFeedback(low), ErrorFeedback(high)), (ranks[0], ranks[1])]
        return {_DENSE: (Uncompressed(), Uncompressed()), **dict(zip(_KINDS, found, strict=True))}

    def cells(self, scope: Scope) -> list[Cell]:
        """The levels of every kind, batches, and what a round of each level costs."""
        data, (small, large) = cifar10(scope).source, self.batch_sizes
        steps = len(load(data).train) // (NUM_WORKERS * self.samples)  # type: ignore[arg-type]
        milestones = max(1, self.epochs // 2), max(1, 5 * self.epochs // 6)
        fixed: dict[str, Any] = {"data": data, "model": convolutional, "epochs": self.epochs}
        fixed["milestones"] = milestones
        levels = {"rate": self.rate, "samples": self.samples, "num_workers": NUM_WORKERS}
        cells, seeds = list[Cell](), range(self.seeds)
        for kind, (low, high) in self.pairs.items():
            ours = Accordion(low, high, 0.5, steps, self.interval, milestones)
            compared = [replace(ours, high=low), replace(ours, low=high), ours]
            if kind == _DENSE:
                compared = [ours]
            if kind == _PLAIN:  # low for two intervals, whatever the norms: for a fifth of the run
                fifth = max(1, self.epochs // 10)
                blind = replace(ours, eta=math.inf, milestones=(), interval=fifth)
                compared += [blind, replace(blind, low=high, high=low)]
            named = zip((*_LEVELS, *_BLIND), compared, strict=False)
            settings: dict[str, Any] = {name: {"compressor": one} for name, one in named}
            axes: dict[str, Any] = {"kind": {kind: {}}, "setting": settings, "seed": seeds}
            cells += grid(level_run, axes, fixed | levels)
            costs: dict[str, Any] = {
                "codec": {kind: {}},
                "compressor": dict(zip(_LEVELS, (low, high), strict=False)),
            }
            cells += grid(round_costs, costs, {"data": data, "samples": self.samples}, alone=True)
        settings = {}
        pairs = zip(_LEVELS, (small, large, small), (small, large, large), strict=True)
        for name, first, last in pairs:
            batch = AccordionBatch(first, last, interval=self.interval)
            settings[name] = {"batch": batch, "rate": 0.02 * first / small}
        axes = {"kind": {_BATCHES: {}}, "setting": settings, "seed": seeds}
        return cells + grid(batch_run, axes, fixed)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Accuracies, bytes and seconds of every kind, and updates of batches that grow."""
        parts, gains, lost = Findings("", []), list[str](), dict[str, float]()
        plain: dict[str, Any] = {
            "accuracy": _accuracy(found, _DENSE, _LOW),
            "time": _times(found, _DENSE)[_LOW],
        }
        for kind in (*_KINDS, _BATCHES):
            low, high, ours = (_accuracy(found, kind, name) for name in _LEVELS)
            sent = "updates" if kind == _BATCHES else "megabytes"
            less = _mean(found, sent, kind, _LOW) / _mean(found, sent, kind, _ACCORDION)
            values: dict[str, Any] = {"kind": kind, "low": low, "high": high, "ours": ours}
            values |= {"less": less, "logged": self.told["logged"].get(kind), "lost": low - high}
            holds = {kind: [ours >= low - 0.5, less >= 2]}
            times = {} if kind == _BATCHES else _times(found, kind)
            if kind != _BATCHES:
                lost[kind] = low - high
                values |= {"links": list(BANDWIDTHS), "times": times, "plain": plain["time"]}
                quicker = [a < b for a, b in zip(times[_ACCORDION], times[_LOW], strict=True)]
                holds = {"accurate": [ours >= low - 0.5], "kept": [low - high >= _LOST]}
                holds["kept"].append(ours >= low - 0.5)
                holds |= {"bytes": [less >= 1.5], "time": quicker}
                values["quicker"] = times[_LOW][0] / times[_ACCORDION][0]
                values |= {"seconds": times[_ACCORDION][0], "down": high - low}
                gains.append(words(self.told["gain"], values | {"more": ours - low}))
            tables = {"levels": _rows(kind, found, times)}
            parts += report(self.told, holds, values, tables)
        blind = [_accuracy(found, _PLAIN, name) for name in _BLIND]
        values = {"blind": blind, "sent": [_mean(found, "megabytes", _PLAIN, n) for n in _BLIND]}
        parts += report(self.told, {"early": [blind[0] > blind[1]]}, values)
        shares = {
            k: found.mean("low_share", kind=k, setting=_ACCORDION) for k in (*_KINDS, _BATCHES)
        }
        means = "; ".join(f"{kind} {100 * fmean(one):.0f} %" for kind, one in shares.items())
        lines = {"levels": {kind: (range(len(one)), one) for kind, one in shares.items()}}
        values |= {"data": cifar10(scope).origin, "gains": "; ".join(gains), "means": means}
        values |= {"recipe": self, "plain": plain["accuracy"], "lost": lost}
        values |= {
            "links": list(BANDWIDTHS),
            "seconds": plain["time"],
            "enough": sum(v >= _LOST for v in lost.values()),
        }
        ours = _accuracy(found, _PLAIN, _ACCORDION)
        values |= {
            "accordion": ours,
            "accordion_sent": _mean(found, "megabytes", _PLAIN, _ACCORDION),
        }
        key = (
            "blind"
            if blind[0] >= ours and values["sent"][0] <= values["accordion_sent"]
            else "answer"
        )
        return parts + report(self.told, {}, values, plots=lines, answer=key)


def _mean(found: Records, value: str, kind: str, setting: str) -> float:
    return float(found.mean(value, kind=kind, setting=setting))


def _accuracy(found: Records, kind: str, setting: str) -> float:
    """In percent; runs that diverged guess."""
    return 100 * _mean(found, "test_accuracy", kind, setting)


def _times(found: Records, kind: str) -> dict[str, list[float]]:
    """Seconds of a run over each link: in between the levels, as its bytes are."""
    compute_s = min(one["compute_s"] for one in found if "codec" in one.labels)
    names = found.where(kind=kind).labels("setting")
    sent = {str(name): _mean(found, "megabytes", kind, str(name)) for name in names}
    most, least = (sent.get(name, sent[_LOW]) for name in (_LOW, _HIGH))
    costs = [found.where(codec=kind, compressor=level)[0] for level in (_LOW, _HIGH)]
    seconds = dict[str, list[float]]()
    for name, megabytes in sent.items():
        share = (megabytes - least) / (most - least) if most > least else 1.0
        rounds = _mean(found, "updates", kind, name)
        seconds[name] = [
            rounds
            * sum(
                part * seconds_per_round(one, compute_s, bandwidth)
                for part, one in zip((share, 1 - share), costs, strict=True)
            )
            for bandwidth in BANDWIDTHS.values()
        ]
    return seconds


def _rows(kind: str, found: Records, times: Mapping[str, list[float]]) -> list[tuple[Any, ...]]:
    rows, whole = [], _mean(found, "megabytes", kind, _LOW)
    for name in map(str, found.where(kind=kind).labels("setting")):
        apart = found.spread(lambda one: 100 * one["test_accuracy"], setting=name, kind=kind)
        loss, sent, updates = (
            _mean(found, value, kind, name) for value in ("train_loss", "megabytes", "updates")
        )
        spent = times.get(name, [None] * len(BANDWIDTHS))
        rows.append(
            (name, _accuracy(found, kind, name), apart, loss, sent, whole / sent, updates, *spent)
        )
    return rows
