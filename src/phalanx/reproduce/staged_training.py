"""Training in stages for recipes: models as chains, pipelines in one process, replicas."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from phalanx.compression import Compressor, TensorStates, simulate
from phalanx.data import DataSource, Splits
from phalanx.errors import NotFiniteError
from phalanx.evaluation import evaluate
from phalanx.experiments import build, load
from phalanx.losses import cross_entropy
from phalanx.pipeline import ActivationDifference, SimulatedPipeline
from phalanx.randomness import generator


@dataclass(frozen=True)
class First(DataSource):
    """The first samples of other data, as many as two replicas can share; 1000 to test on."""

    source: DataSource
    """The other data."""
    samples: int
    """To train on, at most."""

    def load(self) -> Splits:
        """Reads all and keeps the first."""
        whole = self.source.load()
        parts = [(whole.train, self.samples), (whole.test, 1000)]
        sizes = [min(samples, len(one)) // 2 * 2 for one, samples in parts]  # type: ignore[arg-type]
        train, test = (
            TensorDataset(*(column[:size] for column in one[:]))
            for (one, _), size in zip(parts, sizes, strict=True)
        )
        return Splits(train, test, whole.input_shape, whole.num_classes)


def chain(input_shape: tuple[int, ...], num_classes: int, number: int, width: int) -> nn.Sequential:
    """A network in stages: a hidden layer each, and at least two in all."""
    size = math.prod(input_shape)
    stages: list[nn.Module] = [nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU())]
    hidden = [(nn.Linear(width, width), nn.ReLU()) for _ in range(max(1, number - 2))]
    stages += [nn.Sequential(*pair) for pair in hidden[: number - 2]]
    rest = [layer for pair in hidden[max(0, number - 2) :] for layer in pair]
    return nn.Sequential(*stages, nn.Sequential(*rest, nn.Linear(width, num_classes)))


def staged_run(
    *,
    data: DataSource,
    model: Callable[[tuple[int, ...], int], nn.Sequential],
    forward: ActivationDifference | Compressor,
    backward: Compressor,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int,
    batch_size: int,
    seed: int = 0,
    inspect: bool | None = None,
    replicas: int = 1,
    gradients: Compressor | None = None,
) -> dict[str, Any]:
    """Training of a model in stages, by one pipeline or by replicas that average their gradients.

    Args:
        data: held in memory.
        model: makes the chain of stages.
        forward: how activations are rounded.
        backward: how their gradients are.
        optimizer: made of the weights.
        epochs: visits of each sample.
        batch_size: samples per step, over all replicas.
        seed: of weights, order and rounding.
        inspect: whether boundaries that remember something keep both sides, and errors are
            measured; errors only, by default.
        replicas: pipelines over the same stages.
        gradients: how the gradients of several replicas are compressed.

    Returns:
        `test_accuracy`, a share, and `test_loss`; `errors`: `||m - a|| / ||a||` by epoch, over
        boundaries and batches; `error`: the last one; `stopped`: why, if numbers were not finite.
        `boundary_bytes` crossed all boundaries, both ways; `gradient_bytes` are those of all
        replicas; `full_samples` crossed a boundary in full; `agreed`: whether both sides of all
        boundaries remember the same.
    """
    splits = load(data)
    inputs, targets = splits.train[:]
    network = build(model, splits, seed)
    make = partial(
        SimulatedPipeline,
        list(network.children()),
        inputs[:1],
        cross_entropy,
        num_samples=len(inputs),
        forward=forward,
        backward=backward,
        # Both sides, where they have something to agree on; the rest is the same, sooner.
        wire=bool(inspect) and isinstance(forward, ActivationDifference),
        measure=inspect is not False,
        seed=seed,
    )
    pipelines, errors = [make() for _ in range(replicas)], list[float]()
    sides = [pair for one in pipelines for pair in zip(one.senders, one.receivers, strict=True)]
    values: dict[str, Any] = {"errors": errors, "gradient_bytes": None}
    if gradients is not None:
        sizes = [
            gradients.num_bytes(tuple(one.shape), torch.float32) for one in network.parameters()
        ]
        steps = epochs * math.ceil(len(inputs) // replicas / (batch_size // replicas))
        values["gradient_bytes"] = sum(sizes) * replicas * steps
    ended: dict[str, Any] = {"test_accuracy": None, "test_loss": math.inf, "error": math.inf}
    try:
        made = optimizer(network.parameters())
        errors.extend(  # keeps those before a failure
            descend(pipelines, made, inputs, targets, epochs, batch_size, seed, gradients)
        )
        accuracy, loss, _ = evaluate(network, cross_entropy, splits.test, splits.train)
        if math.isfinite(loss):
            ended = {"test_accuracy": accuracy, "test_loss": loss, "error": errors[-1]}
        else:
            ended["stopped"] = "the test loss is not finite"
    except NotFiniteError as error:
        ended["stopped"] = str(error)
    traffic = [one.traffic for one, _ in sides]
    return (
        values
        | ended
        | {
            "boundary_bytes": sum(one.activation_bytes + one.gradient_bytes for one in traffic),
            "full_samples": sum(one.full_samples for one in traffic),
            "agreed": all(_same(one.state_dict(), other.state_dict()) for one, other in sides),
        }
    )


def descend(
    pipelines: Sequence[SimulatedPipeline],
    optimizer: Optimizer,
    inputs: Tensor,
    targets: Tensor,
    epochs: int,
    batch_size: int,
    seed: int,
    gradients: Compressor | None = None,
) -> Iterator[float]:
    """Trains, and tells after every epoch the relative error of the activations, on average.

    Of R replicas, which share their stages, r holds samples r, R + r, 2 R + r ..., for good.

    Raises:
        NotFiniteError: if activations or gradients are not finite.
    """
    weights = dict(nn.ModuleList(pipelines[0].stages).named_parameters())
    memories = [TensorStates()] * len(pipelines)
    for epoch in range(epochs):
        errors = []
        for batches in _batches(len(inputs), len(pipelines), batch_size, seed, epoch):
            rows = []
            for pipeline, ids in zip(pipelines, batches, strict=True):
                optimizer.zero_grad()
                pipeline.step(ids, inputs[ids], targets[ids])
                rows.append(
                    {name: one.grad for name, one in weights.items() if one.grad is not None}
                )
                errors.append(fmean(pipeline.errors) if pipeline.errors else 0.0)
            if gradients is not None:
                means, memories = simulate(gradients, rows, memories, seed=seed)
                for name, mean in means[0].items():
                    weights[name].grad = mean
            optimizer.step()
        yield fmean(errors)


def _batches(
    size: int, replicas: int, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, ...]]:
    """The ids of each replica, step by step."""
    orders = []
    for own in (torch.arange(size)[place::replicas] for place in range(replicas)):
        order = torch.randperm(len(own), generator=generator(seed, "order", epoch))
        orders.append(own[order].split(batch_size // replicas))
    return zip(*orders, strict=True)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    mine, theirs = one["buffer"], other["buffer"]
    return all(torch.equal(mine[name], theirs[name]) for name in mine)
