"""Accordion: bytes and accuracy of two levels of compression, and of the change between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from phalanx.batch_size import AccordionBatch, AccordionBatchSampler, squared_norm
from phalanx.compression import Accordion, ErrorFeedback, PowerSGD, TensorStates, TopK, Uncompressed
from phalanx.data import DataSource
from phalanx.evaluation import evaluate
from phalanx.experiments import Cell, Records, build, compressed_run, grid, load
from phalanx.experiments.runs import MakeModel
from phalanx.fetch import fetch
from phalanx.losses import cross_entropy
from phalanx.models import MLP, LeNet
from phalanx.reproduce.base import Findings, Images, Recipe, Scope, report, sized, words

_LOW, _HIGH, _ACCORDION = _LEVELS = ("low compression", "high compression", "Accordion")
_BLIND = ("low first, high after", "high first, low after")
_PLAIN, *_ = _KINDS = ("top-k", "top-k, error feedback", "PowerSGD")
_BATCHES = "batch size"
_WORKERS = 4


@dataclass(frozen=True)
class AccordionRecipe(Recipe):
    """Static levels of compression, Accordion between them, and batches that grow.

    Source: Agarwal, Wang, Lee, Venkataraman and Papailiopoulos, "Adaptive Gradient Communication
    via Critical Learning Regime Identification", MLSys 2021, and the logs its authors published.
    """

    name: ClassVar[str] = "accordion"

    epochs: int = sized(20, 60, 60)
    """Of every run; the learning rate falls to a tenth after a half, and again after 5/6."""
    interval: int = 2
    """Epochs from one look at the norms to the next: in proportion to the paper's 10 of 300."""
    top_k: tuple[float, float] = (0.2, 0.005)
    """Shares kept at low and high compression, with and without error feedback."""
    ranks: tuple[int, int] = (4, 1)
    """Ranks of PowerSGD, with error feedback."""
    batch_sizes: tuple[int, int] = (32, 256)
    """Batches of critical regimes, and elsewhere."""
    samples: int = 48
    """Per worker and round; there are four workers."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the network, where images are too small for LeNet."""
    seeds: int = sized(1, 3, 5)
    """Runs of each kind."""

    def cells(self, scope: Scope) -> list[Cell]:
        """The levels of every kind on digits, or in full on CIFAR-10 where it is given; batches."""
        images, (small, large) = _images(scope), self.batch_sizes
        steps = len(load(images.source).train) // (_WORKERS * self.samples)  # type: ignore[arg-type]
        milestones = max(1, self.epochs // 2), max(1, 5 * self.epochs // 6)
        model = LeNet if images.published else partial(MLP, hidden=self.hidden)
        fixed: dict[str, Any] = {"data": images.source, "model": model, "epochs": self.epochs}
        fixed["milestones"] = milestones
        levels = {"rate": 0.1, "samples": self.samples, "num_workers": _WORKERS}
        plain = [TopK(ratio) for ratio in self.top_k]
        ranks = [ErrorFeedback(PowerSGD(rank)) for rank in self.ranks]
        pairs: list[Sequence[Any]] = [plain, [ErrorFeedback(one) for one in plain], ranks]
        cells, seeds = list[Cell](), range(self.seeds)
        for kind, (low, high) in zip(_KINDS, pairs, strict=True):
            ours = Accordion(low, high, 0.5, steps, self.interval, milestones)
            compared = [replace(ours, high=low), replace(ours, low=high), ours]
            if kind == _PLAIN:  # low for two intervals, whatever the norms: for a fifth of the run
                fifth = max(1, self.epochs // 10)
                blind = replace(ours, eta=math.inf, milestones=(), interval=fifth)
                compared += [blind, replace(blind, low=high, high=low)]
            named = zip((*_LEVELS, *_BLIND), compared, strict=False)
            settings: dict[str, Any] = {name: {"compressor": one} for name, one in named}
            axes: dict[str, Any] = {"kind": {kind: {}}, "setting": settings, "seed": seeds}
            cells += grid(level_run, axes, fixed | levels)
        settings = {}
        for name, first, last in zip(
            _LEVELS, (small, large, small), (small, large, large), strict=True
        ):
            batch = AccordionBatch(first, last, interval=self.interval)
            settings[name] = {"batch": batch, "rate": 0.02 * first / small}
        axes = {"kind": {_BATCHES: {}}, "setting": settings, "seed": seeds}
        return cells + grid(batch_run, axes, fixed)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Accuracies, bytes and updates of every setting."""
        kinds, parts, gains = (*_KINDS, _BATCHES), Findings("", []), []
        for kind in kinds:
            low, high, ours = (_accuracy(found, kind, name) for name in _LEVELS)
            sent = "updates" if kind == _BATCHES else "megabytes"
            less = _times(found, kind, _ACCORDION, sent)
            values: dict[str, Any] = {"kind": kind, "low": low, "high": high, "ours": ours}
            values |= {"less": less, "logged": self.told["logged"].get(kind)}
            if kind == _BATCHES:
                blind = [_accuracy(found, _PLAIN, name) for name in _BLIND]
                values["blind"] = blind
                values["sent"] = [found.mean("megabytes", kind=_PLAIN, setting=n) for n in _BLIND]
                holds = {"early": [blind[0] > blind[1]], kind: [ours >= low - 0.5, less >= 2]}
            else:
                holds = {"accurate": [ours >= low - 0.5], "bytes": [less >= 3, less >= 1.2]}
                gains.append(words(self.told["gain"], values | {"more": ours - low}))
            parts += report(self.told, holds, values, {"levels": _rows(kind, found)})
        times = {kind: found.mean("low_share", kind=kind, setting=_ACCORDION) for kind in kinds}
        means = "; ".join(f"{kind} {100 * fmean(shares):.0f} %" for kind, shares in times.items())
        lines = {"levels": {kind: (range(len(shares)), shares) for kind, shares in times.items()}}
        values = {"data": _images(scope).origin, "gains": ", ".join(gains), "means": means}
        return parts + report(self.told, {}, values, plots=lines, answer="answer")


def _images(scope: Scope) -> Images:
    return scope.images(("cifar10.npz", "cifar10_12k.npz"), "CIFAR-10")


def _accuracy(found: Records, kind: str, setting: str) -> float:
    """In percent; runs that diverged guess."""
    share: float = found.mean("test_accuracy", kind=kind, setting=setting)
    return 100 * share


def _times(found: Records, kind: str, setting: str, value: str) -> float:
    """How many times less of something a setting takes than low compression."""
    low, ours = (found.mean(value, kind=kind, setting=name) for name in (_LOW, setting))
    return float(low / ours)


def _rows(kind: str, found: Records) -> list[tuple[Any, ...]]:
    rows = []
    for name in map(str, found.where(kind=kind).labels("setting")):
        mean, less = (
            partial(found.mean, setting=name, kind=kind),
            _times(found, kind, name, "megabytes"),
        )
        apart = found.spread(lambda one: 100 * one["test_accuracy"], setting=name, kind=kind)
        accuracy, loss, sent = _accuracy(found, kind, name), mean("train_loss"), mean("megabytes")
        rows.append((name, accuracy, apart, loss, sent, less, mean("updates")))
    return rows


def level_run(
    *, data: DataSource, model: MakeModel, compressor: Accordion, **options: Any
) -> dict[str, Any]:
    """`compressed_run` with messages at the level of every layer.

    Returns:
        What `compressed_run` does; `megabytes`, the payload of one worker's messages over the run;
        `updates`, steps of the optimizer; and `low_share`, per epoch the share of the compressed
        values that were at the low level.
    """
    named = build(model, load(data), 0).named_parameters()
    shapes = {name: tuple(value.shape) for name, value in named}
    codecs = {"low": compressor.low, "high": compressor.high, "dense": Uncompressed()}
    sent, low = list[int](), list[float]()

    def count(states: TensorStates) -> None:
        """What a round will send; vectors are sent as they are."""
        known = compressor.levels(states)
        found = {n: known.get(n, "low" if len(s) > 1 else "dense") for n, s in shapes.items()}
        sent.append(sum(codecs[found[n]].num_bytes(s, torch.float32) for n, s in shapes.items()))
        compressed = {n: math.prod(s) for n, s in shapes.items() if found[n] != "dense"}
        kept = sum(values for n, values in compressed.items() if found[n] == "low")
        low.append(kept / sum(compressed.values()))

    ended = compressed_run(data=data, model=model, compressor=compressor, watch=count, **options)
    counts = {"megabytes": sum(sent) / 1e6, "updates": len(low)}
    steps = compressor.steps_per_epoch  # of an equal share each
    shares = [fmean(low[start : start + steps]) for start in range(0, len(low), steps)]
    return {**ended, **counts, "low_share": shares}


def batch_run(
    *,
    data: DataSource,
    model: MakeModel,
    batch: AccordionBatch,
    rate: float,
    epochs: int,
    milestones: Sequence[int] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Trains one worker with batches that may grow; the learning rate grows with them.

    Returns:
        What `level_run` does, but for `message_bytes`; `low_share` is 1 in epochs of small batches.
    """
    splits = load(data)
    network = build(model, splits, seed)
    values = list(network.parameters())
    optimizer = SGD(values, lr=rate, momentum=0.9)
    schedule = MultiStepLR(optimizer, list(milestones))
    sampler = AccordionBatchSampler(len(splits.train), batch, seed=seed)  # type: ignore[arg-type]
    updates, shares = 0, []
    for _ in range(epochs):
        now = float(schedule.get_last_lr()[0])
        optimizer.param_groups[0]["lr"] = now * batch.factor(sampler.state)
        total = [torch.zeros_like(value) for value in values]
        for samples in sampler:
            inputs, targets = fetch(splits.train, torch.tensor(samples))
            found = torch.autograd.grad(cross_entropy(network(inputs), targets), values)
            for value, whole, gradient in zip(values, total, found, strict=True):
                whole += gradient
                value.grad = gradient
            optimizer.step()
            updates += 1
        shares.append(float(sampler.state.size == batch.low))
        optimizer.param_groups[0]["lr"] = now  # the schedule multiplies what stands there
        schedule.step()
        sampler.on_epoch_end(squared_norm(total) ** 0.5, now, float(schedule.get_last_lr()[0]))
    return {
        "test_accuracy": evaluate(network, cross_entropy, splits.test, splits.train).accuracy,
        "train_loss": min(1e4, evaluate(network, cross_entropy, splits.train, splits.train).loss),
        "megabytes": updates * sum(value.nbytes for value in values) / 1e6,
        "updates": updates,
        "low_share": shares,
    }
