"""Accordion: bytes and accuracy of two levels of compression, and of the change between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from phalanx.batch_size import AccordionBatch, AccordionBatchSampler, squared_norm
from phalanx.compression import (
    Accordion,
    Compressor,
    ErrorFeedback,
    PowerSGD,
    TensorStates,
    TopK,
    Uncompressed,
)
from phalanx.data import DataSource
from phalanx.evaluation import evaluate
from phalanx.experiments import (
    Cell,
    MakeModel,
    Record,
    Records,
    build,
    compressed_run,
    grid,
    load,
)
from phalanx.fetch import fetch
from phalanx.models import MLP, LeNet
from phalanx.reproduce.base import Findings, Recipe, Scope, published, report

_LOW, _HIGH, _ACCORDION = "low compression", "high compression", "Accordion"
_FIRST, _AFTER = "low first, high after", "high first, low after"
_PLAIN, _FEEDBACK, _RANKS, _BATCHES = "top-k", "top-k, error feedback", "PowerSGD", "batch size"
_IMAGES = (("cifar10.npz", "cifar10_12k.npz"), "CIFAR-10")
_TOLD = published("accordion")


@dataclass(frozen=True)
class AccordionRecipe(Recipe):
    """Static levels of compression, Accordion between them, and batches that grow.

    The paper's figures are from it and from the logs that its authors published. Cost: in quick
    mode about four minutes on one core.
    """

    name: ClassVar[str] = "accordion"
    paper: ClassVar[str] = _TOLD["paper"]

    epochs: int = 60
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
    seeds: int | None = None
    """Runs of each kind; by default 3, or 5 in full."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Levels of every kind, and batch sizes, on the digits or on the images of a full run."""
        images = scope.images(*_IMAGES)
        milestones = (max(1, self.epochs // 2), max(1, 5 * self.epochs // 6))
        fixed = {
            "data": images.source,
            "model": LeNet if images.published else partial(MLP, hidden=self.hidden),
            "epochs": self.epochs,
            "milestones": milestones,
        }
        seeds = {"seed": range(self.seeds or (5 if scope.full else 3))}
        kept = [TopK(ratio) for ratio in self.top_k]
        kinds: dict[str, list[Compressor]] = {
            _PLAIN: [*kept],
            _FEEDBACK: [ErrorFeedback(one) for one in kept],
            _RANKS: [ErrorFeedback(PowerSGD(rank)) for rank in self.ranks],
        }
        steps = len(load(images.source).train) // (4 * self.samples)  # type: ignore[arg-type]
        cells = []
        for kind, (low, high) in kinds.items():
            adaptive = Accordion(
                low, high, steps_per_epoch=steps, interval=self.interval, milestones=milestones
            )
            settings = {
                _LOW: replace(adaptive, high=low),
                _HIGH: replace(adaptive, low=high),
                _ACCORDION: adaptive,
            }
            if kind == _PLAIN:  # low for two intervals, whatever the norms: for a fifth of the run
                fifth = max(1, self.epochs // 10)
                blind = replace(adaptive, eta=math.inf, milestones=(), interval=fifth)
                settings |= {_FIRST: blind, _AFTER: replace(blind, low=high, high=low)}
            levels = {name: {"compressor": one} for name, one in settings.items()}
            sizes = fixed | {"rate": 0.1, "samples": self.samples}
            cells += grid(levels_run, {"kind": {kind: {}}, "setting": levels, **seeds}, sizes)
        small, large = self.batch_sizes
        pairs = {_LOW: (small, small), _HIGH: (large, large), _ACCORDION: (small, large)}
        batches = {
            name: {
                "batch": AccordionBatch(first, last, interval=self.interval),
                "rate": 0.02 * first / small,
            }
            for name, (first, last) in pairs.items()
        }
        return cells + grid(
            batches_run, {"kind": {_BATCHES: {}}, "setting": batches, **seeds}, fixed
        )

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Accuracies and bytes of Accordion beside those of low compression, for every kind."""

        def figures(value: str, kind: str, *settings: str) -> list[float]:
            return [found.mean(value, kind=kind, setting=one) for one in settings]

        parts, told = [], []
        for kind in (_PLAIN, _FEEDBACK, _RANKS):
            low, high, ours = figures("accuracy", kind, _LOW, _HIGH, _ACCORDION)
            static, adaptive = figures("MB", kind, _LOW, _ACCORDION)
            less, logged = static / adaptive, _TOLD["figures"][kind]
            values = {"kind": kind, "low": low, "high": high, "ours": ours, "less": less}
            holds = {"accuracy": [ours >= low - 0.5], "bytes": [less >= 3, less >= 1.2]}
            told.append(report(_TOLD, holds, values | {"logged": logged}))
            parts.append(f"{less:.1f} times fewer bytes and {ours - low:+.1f} points with {kind}")
        first, after = figures("accuracy", _PLAIN, _FIRST, _AFTER)
        small, large, grown = figures("accuracy", _BATCHES, _LOW, _HIGH, _ACCORDION)
        many, few = figures("updates", _BATCHES, _LOW, _ACCORDION)
        values = {
            "parts": ", ".join(parts),
            "early": (first, after, *figures("MB", _PLAIN, _FIRST, _AFTER)),
            "batches": (small, large, grown, many / few),
        }
        holds = {"early": [first > after], "batches": [grown >= small - 0.5, many / few >= 2]}
        shares = {
            kind: found.mean("low_share", kind=kind, setting=_ACCORDION)
            for kind in map(str, found.labels("kind"))
        }
        lines = {kind: (range(self.epochs), share) for kind, share in shares.items() if share}
        told.append(report(_TOLD, holds, values, plots={"low": lines}, answer="answer"))
        told += [_levels(kind, found.where(kind=kind)) for kind in shares]
        origin = f"Data: {scope.images(*_IMAGES).origin}."
        return replace(reduce(add, told), notes=[origin, *_TOLD["notes"]])


def _levels(kind: str, runs: Records) -> Findings:
    """Every setting, over the seeds."""
    rows, low = [], runs.mean("MB", setting=_LOW)
    for setting in runs.labels("setting"):
        own = runs.where(setting=setting)
        values = {name: own.mean(name) for name in ("accuracy", "loss", "MB", "updates")}
        values["deviation"] = own.spread("accuracy")
        values["times less than low"] = low / values["MB"]
        rows.append(Record({"setting": setting}, values=values))
    return report(_TOLD, {}, {"kind": kind}, {"levels": Records(rows)})


def levels_run(
    *, data: DataSource, model: MakeModel, compressor: Accordion, **options: Any
) -> dict[str, Any]:
    """`compressed_run` with messages at the level of every layer.

    Returns:
        `accuracy` in percent, training `loss`, `MB` of payload of one worker over the run,
        `updates` of the weights, and `low_share` per epoch: the share of the compressed values that
        were at the low level, None if the run stopped.
    """
    shapes = {name: one.shape for name, one in build(model, load(data), 0).named_parameters()}
    num_bytes, low, compressed = 0, list[int](), list[int]()

    def count(memory: TensorStates) -> None:
        """Adds what the next round sends; vectors are sent as they are."""
        nonlocal num_bytes
        levels, values = compressor.levels(memory), {"low": 0, "high": 0, "dense": 0}
        for name, shape in shapes.items():
            level = levels.get(name, "low" if len(shape) > 1 else "dense")
            chosen = {"low": compressor.low, "high": compressor.high}.get(level, Uncompressed())
            num_bytes += chosen.num_bytes(shape, torch.float32)
            values[level] += shape.numel()
        low.append(values["low"])
        compressed.append(values["low"] + values["high"])

    ended = compressed_run(data=data, model=model, compressor=compressor, watch=count, **options)
    steps = compressor.steps_per_epoch
    shares = [
        sum(low[start : start + steps]) / sum(compressed[start : start + steps])
        for start in range(0, len(low), steps)
    ]
    found = _values(ended["test_accuracy"], ended["train_loss"], num_bytes, len(low), shares)
    stopped = {"stopped": ended["stopped"], "low_share": None} if "stopped" in ended else {}
    return found | stopped


def batches_run(
    *,
    data: DataSource,
    model: MakeModel,
    batch: AccordionBatch,
    rate: float,
    epochs: int,
    milestones: Sequence[int] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Trains one worker with batches that may grow, and the learning rate with them.

    Returns: as `levels_run`; `low_share` is 1 in epochs with small batches and 0 in others.
    """
    splits = load(data)
    network = build(model, splits, seed)
    optimizer = SGD(network.parameters(), lr=rate, momentum=0.9)
    schedule = MultiStepLR(optimizer, list(milestones))
    sampler = AccordionBatchSampler(len(splits.train), batch, seed=seed)  # type: ignore[arg-type]
    updates, shares, parameters = 0, list[float](), list(network.parameters())
    for _ in range(epochs):
        rate = float(schedule.get_last_lr()[0])
        for group in optimizer.param_groups:
            group["lr"] = rate * batch.factor(sampler.state)
        total = [torch.zeros_like(value) for value in parameters]
        for samples in sampler:
            inputs, targets = fetch(splits.train, torch.tensor(samples))
            found = torch.autograd.grad(cross_entropy(network(inputs), targets), parameters)
            for summed, value, gradient in zip(total, parameters, found, strict=True):
                summed += gradient
                value.grad = gradient
            optimizer.step()
            updates += 1
        shares.append(float(sampler.state.size == batch.low))
        for group in optimizer.param_groups:
            group["lr"] = rate  # the schedule multiplies what stands there
        schedule.step()
        following = float(schedule.get_last_lr()[0])
        sampler.on_epoch_end(math.sqrt(squared_norm(total)), rate, following)
    accuracy = evaluate(network, cross_entropy, splits.test, splits.train).accuracy
    loss = evaluate(network, cross_entropy, splits.train, splits.train).loss
    dense = sum(value.nbytes for value in parameters)
    return _values(accuracy, loss, updates * dense, updates, shares)


def _values(
    accuracy: float | None, loss: float, num_bytes: int, updates: int, shares: list[float]
) -> dict[str, Any]:
    assert accuracy is not None  # targets are classes
    found = {"accuracy": 100 * accuracy, "loss": loss, "MB": num_bytes / 1e6}
    return {**found, "updates": updates, "low_share": shares}
