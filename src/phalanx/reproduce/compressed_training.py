"""Training on digits by simulated workers who compress what they send, as recipes need it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from phalanx.compression import Compressor, Memory, simulate
from phalanx.data import Splits
from phalanx.models import MLP
from phalanx.randomness import generator, seeded
from phalanx.reporting import Table
from phalanx.reproduce.base import Progress

_DIVERGED = 1e4  # the loss of a run whose numbers left the range

Weights = dict[str, Tensor]


class Trained(NamedTuple):
    """How training ended, on average over the seeds.

    Attributes:
        accuracy: on the test set, in percent.
        loss: on the training set.
        rate: the learning rate, of those tried the one with the least training loss.
    """

    accuracy: float
    loss: float
    rate: float


@dataclass(frozen=True)
class CompressedTraining:
    """What the runs of a table have in common: SGD with momentum after the mean."""

    splits: Splits
    """The data."""
    num_workers: int = 4
    """Workers, simulated in step."""
    samples: int = 32
    """Samples a worker and step."""
    epochs: int = 20
    """Passes over the data."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the network's hidden layers."""
    momentum: float = 0.9
    """Of SGD, applied to the mean that the workers decode."""
    rates: tuple[float, ...] = (0.02, 0.05, 0.1)
    """Learning rates, of which each method has the best."""
    seeds: tuple[int, ...] = (0, 1)
    """Of weights, order and compression; the first one chooses the rate."""

    def train(self, compressor: Compressor | None) -> Trained:
        """Trains with a compressor, or without any."""
        first = [self._run(compressor, rate, self.seeds[0]) for rate in self.rates]
        best = min(range(len(first)), key=lambda place: first[place][1])
        rate = self.rates[best]
        runs = [first[best], *(self._run(compressor, rate, seed) for seed in self.seeds[1:])]
        accuracies, losses = zip(*runs, strict=True)
        return Trained(round(100 * mean(accuracies), 1), mean(losses), rate)

    def _run(self, compressor: Compressor | None, rate: float, seed: int) -> tuple[float, float]:
        """Test accuracy, training loss."""
        inputs, targets = whole(self.splits.train)
        with seeded(seed, "weights"):
            model = MLP(self.splits.input_shape, self.splits.num_classes, self.hidden)
        weights = {name: one.detach() for name, one in model.named_parameters()}
        velocity = {name: torch.zeros_like(one) for name, one in weights.items()}
        memories = [Memory()] * self.num_workers
        gradients = worker_gradients(model)
        batch = self.num_workers * self.samples
        for epoch in range(self.epochs):
            order = torch.randperm(len(inputs), generator=generator(seed, "order", epoch))
            used = order[: len(order) // batch * batch]
            for rows in used.view(-1, self.num_workers, self.samples):
                found = gradients(weights, inputs[rows], targets[rows])
                if not all(bool(one.isfinite().all()) for one in found.values()):
                    return 1 / self.splits.num_classes, _DIVERGED
                average, memories = _average(compressor, found, memories, seed)
                for name, one in average.items():
                    velocity[name] = self.momentum * velocity[name] + one
                    weights[name] = weights[name] - rate * velocity[name]
        test_inputs, test_targets = whole(self.splits.test)
        right = functional_call(model, weights, test_inputs).argmax(dim=1) == test_targets
        loss = float(cross_entropy(functional_call(model, weights, inputs), targets))
        return float(right.float().mean()), loss if loss < _DIVERGED else _DIVERGED


def _average(
    compressor: Compressor | None, found: Weights, memories: list[Memory], seed: int
) -> tuple[Weights, list[Memory]]:
    """The mean over the workers, and what they remember of it."""
    if compressor is None:
        return {name: one.mean(dim=0) for name, one in found.items()}, memories
    rows = [{name: one[worker] for name, one in found.items()} for worker in range(len(memories))]
    means, memories = simulate(compressor, rows, memories, seed=seed)
    return means[0], memories


def worker_gradients(model: nn.Module) -> Callable[[Weights, Tensor, Tensor], Weights]:
    """Gradients of all workers: of weights, inputs `(workers, samples, ...)` and classes."""

    def loss(weights: Weights, inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, weights, inputs), targets)

    found: Callable[[Weights, Tensor, Tensor], Weights] = vmap(grad(loss), in_dims=(None, 0, 0))
    return found


def whole(dataset: Dataset[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """All inputs and classes of a data set that is in memory."""
    size = len(dataset)  # type: ignore[arg-type]
    inputs, targets = dataset[torch.arange(size)]
    return inputs, targets


def accuracy_table(results: Mapping[str, Trained], sent: Mapping[str, float]) -> Table:
    """How training ended, and what a worker sends in a step."""
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


def sent_bytes(compressor: Compressor | None, shapes: Sequence[tuple[int, ...]]) -> float:
    """Bytes of a worker's messages about Gaussian tensors of these shapes: a mean of ten draws."""
    if compressor is None:
        return float(sum(4 * torch.Size(shape).numel() for shape in shapes))
    source = generator(0, "sizes")
    sizes = [
        compressor.encode(torch.randn(shape, generator=source), source).num_bytes
        for _ in range(10)
        for shape in shapes
    ]
    return sum(sizes) / 10


def parameter_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of a model's tensors."""
    return [tuple(one.shape) for one in model.parameters()]


def trained_on_digits(
    methods: Mapping[str, Compressor | None], training: CompressedTraining, progress: Progress
) -> tuple[dict[str, Trained], Table]:
    """Trains with every method, and says how that ended."""
    results: dict[str, Trained] = {}
    sent: dict[str, float] = {}
    shapes = parameter_shapes(
        MLP(training.splits.input_shape, training.splits.num_classes, training.hidden)
    )
    for name, compressor in methods.items():
        progress(f"training: {name}")
        results[name] = training.train(compressor)
        sent[name] = sent_bytes(compressor, shapes)
    return results, accuracy_table(results, sent)
