"""What Accordion's recipe counts while it trains: bytes by level, and batches that grow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from phalanx.batch_size import AccordionBatch, AccordionBatchSampler, squared_norm
from phalanx.compression import Accordion, TensorStates
from phalanx.fetch import fetch
from phalanx.reproduce.compressed_training import CompressedTraining, descend


class AccordionRun(NamedTuple):
    """How a run ended, and what it took.

    Attributes:
        accuracy: on the test data, in percent.
        loss: on the training data.
        megabytes: payload of one worker's messages over the run.
        updates: steps of the optimizer.
        low_share: per epoch: share of the compressed values that were at the low level.
    """

    accuracy: float
    loss: float
    megabytes: float
    updates: int
    low_share: tuple[float, ...]


def run_levels(
    training: CompressedTraining, compressor: Accordion, rate: float, seed: int
) -> AccordionRun:
    """Trains with messages at the level of every layer."""
    model, *_ = training.start(rate, seed)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    count = _LevelCount(compressor, shapes)
    ended = training.run(compressor, rate, seed, count)
    steps = training.steps_per_epoch
    shares = [
        sum(count.low[start : start + steps]) / sum(count.compressed[start : start + steps])
        for start in range(0, len(count.low), steps)
    ]
    return AccordionRun(*ended, count.num_bytes / 1e6, len(count.low), tuple(shares))


@dataclass
class _LevelCount:
    """Counts, before every round, what it will send."""

    compressor: Accordion
    shapes: Mapping[str, tuple[int, ...]]
    num_bytes: int = 0
    low: list[int] = field(default_factory=list)
    compressed: list[int] = field(default_factory=list)

    def __call__(self, memory: TensorStates) -> None:
        """Values at the low level and at either; vectors are sent as they are."""
        levels, low, compressed = self.compressor.levels(memory), 0, 0
        for name, shape in self.shapes.items():
            level = levels.get(name, "low" if len(shape) > 1 else "dense")
            values = math.prod(shape)
            if level == "dense":
                self.num_bytes += 4 * values
                continue
            chosen = self.compressor.low if level == "low" else self.compressor.high
            self.num_bytes += chosen.num_bytes(shape, torch.float32)
            compressed += values
            low += values * (level == "low")
        self.low.append(low)
        self.compressed.append(compressed)


def run_batches(
    training: CompressedTraining, batch: AccordionBatch, rate: float, seed: int
) -> AccordionRun:
    """Trains one worker with batches that may grow; the learning rate grows with them."""
    model, optimizer, schedule = training.start(rate, seed)
    data = training.splits.train
    sampler = AccordionBatchSampler(len(data), batch, seed=seed)  # type: ignore[arg-type]
    updates, shares = 0, []
    for _ in range(training.epochs):
        rate = float(schedule.get_last_lr()[0])
        for group in optimizer.param_groups:
            group["lr"] = rate * batch.factor(sampler.state)
        total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
        for samples in sampler:
            gradients = _gradients(model, *fetch(data, torch.tensor(samples)))
            for name, gradient in gradients.items():
                total[name] += gradient
            descend(model, optimizer, gradients)
            updates += 1
        shares.append(float(sampler.state.size == batch.low))
        for group in optimizer.param_groups:
            group["lr"] = rate  # the schedule multiplies what stands there
        schedule.step()
        following = float(schedule.get_last_lr()[0])
        sampler.on_epoch_end(math.sqrt(squared_norm(total.values())), rate, following)
    dense = sum(value.nbytes for value in model.parameters())
    return AccordionRun(*training.ended(model), updates * dense / 1e6, updates, tuple(shares))


def _gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(cross_entropy(model(inputs), targets), list(named.values()))
    return dict(zip(named, found, strict=True))
