"""Training of simulated workers that compress their gradients, for recipes: bytes beside accuracy.

Order of samples and initial weights follow from the seed alone, so that runs with different
compressors differ in nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from phalanx.compression import Accordion, Compressor, Memory, simulate
from phalanx.data import Splits
from phalanx.randomness import generator, seeded
from phalanx.training import AccordionBatch, AccordionBatchSampler, evaluate, squared_norm
from phalanx.training.batches import fetch

MakeModel = Callable[[tuple[int, ...], int], nn.Module]


@dataclass(frozen=True)
class CompressedRun:
    """How a run ended."""

    accuracy: float
    """On the test data, in percent."""
    loss: float
    """On the training data."""
    megabytes: float
    """Payload of one worker's messages over the run."""
    updates: int
    """Steps of the optimizer."""
    low_share: tuple[float, ...]
    """Per epoch: share of the compressed values that were at the low level."""


@dataclass(frozen=True)
class CompressedTraining:
    """What all runs have in common."""

    splits: Splits
    """The data."""
    model: MakeModel
    """Called with the shape of an input and the number of classes."""
    epochs: int
    """Of every run."""
    milestones: tuple[int, ...]
    """Epochs at which the learning rate falls to a tenth."""
    num_workers: int = 4
    """Simulated workers."""
    samples: int = 32
    """Of a worker and round."""
    rate: float = 0.1
    """Learning rate at first."""
    momentum: float = 0.9
    """Of the optimizer, after the mean."""

    @property
    def steps_per_epoch(self) -> int:
        """Rounds; samples that do not fill a last one wait for the next epoch."""
        return len(self.splits.train) // (self.num_workers * self.samples)  # type: ignore[arg-type]

    def run(self, compressor: Accordion, seed: int) -> CompressedRun:
        """Trains with messages of a compressor."""
        model, optimizer, schedule = self._start(seed)
        memories = [Memory()] * self.num_workers
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        sent, shares = 0, []
        size = len(self.splits.train)  # type: ignore[arg-type]
        for epoch in range(self.epochs):
            order = torch.randperm(size, generator=generator(seed, "order", epoch))
            low = compressed = 0
            for step in range(self.steps_per_epoch):
                levels = compressor.levels(memories[0])
                for name, shape in shapes.items():
                    level = levels.get(name, "low" if len(shape) > 1 else "dense")
                    values = torch.Size(shape).numel()
                    sent += 4 * values
                    if level != "dense":
                        chosen = compressor.low if level == "low" else compressor.high
                        sent += payload(chosen, shape) - 4 * values
                        compressed += values
                        low += values * (level == "low")
                start = step * self.num_workers * self.samples
                batch = order[start : start + self.num_workers * self.samples]
                rows = [_gradients(model, self.splits, part) for part in batch.split(self.samples)]
                means, memories = simulate(compressor, rows, memories, seed=seed)
                _step(model, optimizer, means[0])
            shares.append(low / compressed)
            schedule.step()
        updates = self.epochs * self.steps_per_epoch
        return self._ended(model, sent / 1e6, updates, tuple(shares))

    def run_batches(self, batch: AccordionBatch, seed: int) -> CompressedRun:
        """Trains one worker with batches that may grow; the learning rate grows with them."""
        model, optimizer, schedule = self._start(seed)
        size = len(self.splits.train)  # type: ignore[arg-type]
        sampler = AccordionBatchSampler(size, batch, seed=seed)
        updates, shares = 0, []
        dense = sum(value.nbytes for value in model.parameters())
        for _ in range(self.epochs):
            rate = float(schedule.get_last_lr()[0])
            for group in optimizer.param_groups:
                group["lr"] = rate * batch.factor(sampler.state)
            total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
            for samples in sampler:
                gradients = _gradients(model, self.splits, torch.tensor(samples))
                for name, gradient in gradients.items():
                    total[name] += gradient
                _step(model, optimizer, gradients)
                updates += 1
            shares.append(float(sampler.state.size == batch.low))
            for group in optimizer.param_groups:
                group["lr"] = rate  # the schedule multiplies what stands there
            schedule.step()
            following = float(schedule.get_last_lr()[0])
            sampler.on_epoch_end(math.sqrt(squared_norm(total.values())), rate, following)
        return self._ended(model, updates * dense / 1e6, updates, tuple(shares))

    def _start(self, seed: int) -> tuple[nn.Module, Optimizer, MultiStepLR]:
        with seeded(seed, "weights"):
            model = self.model(self.splits.input_shape, self.splits.num_classes)
        optimizer = SGD(model.parameters(), lr=self.rate, momentum=self.momentum)
        return model, optimizer, MultiStepLR(optimizer, list(self.milestones))

    def _ended(
        self, model: nn.Module, megabytes: float, updates: int, shares: tuple[float, ...]
    ) -> CompressedRun:
        train, test = self.splits.train, self.splits.test
        accuracy = evaluate(model, cross_entropy, test, train).accuracy
        assert accuracy is not None
        loss = evaluate(model, cross_entropy, train, train).loss
        return CompressedRun(100 * accuracy, loss, megabytes, updates, shares)


def payload(compressor: Compressor, shape: tuple[int, ...]) -> int:
    """Bytes of a message about a float32 tensor, for compressors whose messages have one size."""
    parts = compressor.layout(shape, torch.float32)
    return sum(part.fewest * part.dtype.itemsize for part in parts)


def _gradients(model: nn.Module, splits: Splits, samples: Tensor) -> dict[str, Tensor]:
    inputs, targets = fetch(splits.train, samples)
    named = dict(model.named_parameters())
    found = torch.autograd.grad(cross_entropy(model(inputs), targets), list(named.values()))
    return dict(zip(named, found, strict=True))


def _step(model: nn.Module, optimizer: Optimizer, gradients: dict[str, Tensor]) -> None:
    for name, value in model.named_parameters():
        value.grad = gradients[name]
    optimizer.step()
