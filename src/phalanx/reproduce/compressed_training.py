"""Training by simulated workers who compress what they send, as recipes need it.

Order of samples and initial weights follow from the seed alone, so that runs with different
compressors differ in nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from phalanx.compression import Compressor, TensorStates, simulate
from phalanx.computations.gradient import PartitionGradients
from phalanx.data import Digits, Splits
from phalanx.models import MLP
from phalanx.randomness import generator, seeded
from phalanx.reporting import Table
from phalanx.reproduce.base import MakeModel, Progress
from phalanx.training import evaluate
from phalanx.training.decoding import Uncoded
from phalanx.training.job import Job

_DIVERGED = 1e4  # the loss of a run whose numbers left the range


class Ended(NamedTuple):
    """How a run ended.

    Attributes:
        accuracy: on the test data, in percent.
        loss: on the training data.
    """

    accuracy: float
    loss: float


@dataclass(frozen=True)
class CompressedTraining:
    """What runs have in common: SGD with momentum, after the mean that the workers decode."""

    splits: Splits
    """The data."""
    model: MakeModel
    """Makes the model."""
    epochs: int
    """Passes over the data."""
    milestones: tuple[int, ...] = ()
    """Epochs at which the learning rate falls to a tenth."""
    num_workers: int = 4
    """Workers, simulated in step."""
    samples: int = 32
    """Of a worker and round."""

    @property
    def steps_per_epoch(self) -> int:
        """Rounds; samples that do not fill a last one wait for the next epoch."""
        return len(self.splits.train) // (self.num_workers * self.samples)  # type: ignore[arg-type]

    def run(
        self,
        compressor: Compressor,
        rate: float,
        seed: int,
        watch: Callable[[TensorStates], None] = lambda _: None,
    ) -> Ended:
        """Trains with messages of a compressor.

        Args:
            compressor: of all workers.
            rate: learning rate at first.
            seed: of weights, order and compression.
            watch: told before every round what the first worker remembers.
        """
        model, optimizer, schedule = self.start(rate, seed)
        batch = self.num_workers * self.samples
        code = Uncoded(self.num_workers)
        job = Job(model, cross_entropy, self.splits.train, code, batch, seed)
        gradients, memories = PartitionGradients(job), [TensorStates()] * self.num_workers
        for step in range(self.epochs * self.steps_per_epoch):
            weights = parameters_to_vector(model.parameters()).detach()
            blocks = gradients.blocks(step, range(self.num_workers), weights)
            rows = torch.cat([block for block, _ in blocks])
            if not rows.isfinite().all():
                return Ended(100 / self.splits.num_classes, _DIVERGED)
            watch(memories[0])
            workers = [_by_name(model, row) for row in rows]
            means, memories = simulate(compressor, workers, memories, seed=seed)
            descend(model, optimizer, means[0])
            if (step + 1) % self.steps_per_epoch == 0:
                schedule.step()
        return self.ended(model)

    def start(self, rate: float, seed: int) -> tuple[nn.Module, Optimizer, MultiStepLR]:
        """A model, its optimizer, and what lowers the learning rate, an epoch a step."""
        with seeded(seed, "weights"):
            model = self.model(self.splits.input_shape, self.splits.num_classes)
        optimizer = SGD(model.parameters(), lr=rate, momentum=0.9)
        return model, optimizer, MultiStepLR(optimizer, list(self.milestones))

    def ended(self, model: nn.Module) -> Ended:
        """How good the model is."""
        train, test = self.splits.train, self.splits.test
        accuracy = evaluate(model, cross_entropy, test, train).accuracy
        assert accuracy is not None  # targets are classes
        loss = evaluate(model, cross_entropy, train, train).loss
        return Ended(100 * accuracy, loss if loss < _DIVERGED else _DIVERGED)


def descend(model: nn.Module, optimizer: Optimizer, gradients: Mapping[str, Tensor]) -> None:
    """A step against these gradients."""
    for name, value in model.named_parameters():
        value.grad = gradients[name]
    optimizer.step()


class Trained(NamedTuple):
    """How training with one method ended, on average over the seeds.

    Attributes:
        accuracy: on the test data, in percent, to a tenth.
        loss: on the training data.
        rate: the learning rate, of those tried the one with the least training loss.
    """

    accuracy: float
    loss: float
    rate: float


@dataclass(frozen=True)
class DigitsTraining:
    """How recipes that compare compressors train on digits: the sizes of it."""

    epochs: int = 20
    """Passes over the digits."""
    num_seeds: int | None = None
    """Runs that are averaged; by default 1, or 8 in full."""
    rates: tuple[float, ...] = (0.05, 0.1)
    """Learning rates, of which each method has the best."""
    samples: int = 32
    """Of each of four workers in a step."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the network's hidden layers."""

    def train(
        self, methods: Mapping[str, Compressor], full: bool, progress: Progress
    ) -> tuple[dict[str, Trained], Table]:
        """Trains with every method, and says how that ended, beside bytes of messages."""
        network = partial(MLP, hidden=self.hidden)
        runs = CompressedTraining(Digits().load(), network, self.epochs, samples=self.samples)
        shapes = [tuple(one.shape) for one in runs.start(0.0, 0)[0].parameters()]
        results: dict[str, Trained] = {}
        sent: dict[str, float] = {}
        for name, compressor in methods.items():
            progress(f"training: {name}")
            results[name] = self._tuned(runs, compressor, full)
            sent[name] = sent_bytes(compressor, shapes)
        return results, _accuracy_table(results, sent)

    def settings(self, full: bool) -> dict[str, str | int | float | bool]:
        """What was run."""
        return {"epochs": self.epochs, "num_seeds": len(self._seeds(full)), "full": full}

    def _seeds(self, full: bool) -> range:
        return range(self.num_seeds or (8 if full else 1))

    def _tuned(self, runs: CompressedTraining, compressor: Compressor, full: bool) -> Trained:
        """With the learning rate that the first seed chooses."""
        first, *others = self._seeds(full)
        tried = {rate: runs.run(compressor, rate, first) for rate in self.rates}
        rate = min(tried, key=lambda one: tried[one].loss)
        found = [tried[rate], *(runs.run(compressor, rate, seed) for seed in others)]
        accuracy = mean(one.accuracy for one in found)
        return Trained(round(accuracy, 1), mean(one.loss for one in found), rate)


def sent_bytes(compressor: Compressor, shapes: list[tuple[int, ...]]) -> float:
    """Bytes of a worker's messages about Gaussian tensors of these shapes: a mean of ten draws."""
    source = generator(0, "sizes")
    sizes = [
        compressor.encode(torch.randn(shape, generator=source), source).num_bytes
        for _ in range(10)
        for shape in shapes
    ]
    return sum(sizes) / 10


def _accuracy_table(results: Mapping[str, Trained], sent: Mapping[str, float]) -> Table:
    return Table(
        "Training on digits",
        "Test accuracy and training loss at the end, with the learning rate of least loss, and "
        "bytes of a worker's messages in a step.",
        ("method", "test accuracy", "training loss", "learning rate", "bytes"),
        tuple(
            (name, one.accuracy, float(f"{one.loss:.3g}"), one.rate, round(sent[name]))
            for name, one in results.items()
        ),
    )


def _by_name(model: nn.Module, row: Tensor) -> dict[str, Tensor]:
    """A flat gradient, cut into those of the tensors."""
    named = dict(model.named_parameters())
    parts = row.split([value.numel() for value in named.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(named.items(), parts, strict=True)
    }
