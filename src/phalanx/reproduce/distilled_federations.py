"""Runs of the recipe on ensemble distillation: networks that differ, and rounds to a target."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from phalanx.data import DataSource, DirichletPartitioner
from phalanx.experiments import MakeModel, Records, load
from phalanx.federated import (
    Distillation,
    FedDF,
    FederatedAlgorithm,
    deal,
    federate,
    federate_prototypes,
    noise_inputs,
)
from phalanx.models import MLP
from phalanx.randomness import generator
from phalanx.reproduce.base import to_points
from phalanx.reproduce.federated_training import rounds_to

Unlabelled = Literal["own", "other", "generated", "noise"]
"""Samples of the data set that no client holds, another data set, draws from a normal distribution
fitted to the server's validation images, and uniform noise (of texts: words drawn at random)."""

RIVALS, OURS = ("FedAvg", "FedProx", "FedAvgM", "SCAFFOLD"), "FedDF"
METHODS = (*RIVALS, OURS)
_VALIDATION = 500  # labelled samples of the server, at most
VOCABULARY = 4096  # of the texts


class StridedNetwork(nn.Sequential):
    """Two strided convolutions, a linear layer of twice the channels of the second, the classes."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int = 16) -> None:
        channels, *sides = input_shape
        size = torch.Size(-(-side // 4) for side in sides).numel()
        super().__init__(
            *(nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(2 * width * size, 4 * width), nn.ReLU()),
            nn.Linear(4 * width, num_classes),
        )


class WordSum(nn.Module):
    """The sum of the words' vectors over the root of their number, a hidden layer, the classes."""

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(VOCABULARY, 64)
        nn.init.normal_(self.vectors.weight, std=0.1)
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, words: Tensor) -> Tensor:
        """Logits of texts, of whose words 0 is padding."""
        there = (words != 0).unsqueeze(2)
        whole = (self.vectors(words) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1).sqrt()
        found: Tensor = self.head(whole)
        return found


class Dealt(NamedTuple):
    """A data set in the hands of clients and server.

    Attributes:
        clients: the clients' samples.
        validation: labelled samples of the server.
        rest: samples that nobody else holds.
        test: what models are tested on.
        shape: of an input.
        classes: how many there are.
    """

    clients: list[Dataset[tuple[Tensor, ...]]]
    validation: TensorDataset
    rest: TensorDataset
    test: TensorDataset
    shape: tuple[int, ...]
    classes: int


def dealt(
    data: DataSource, samples: int, num_clients: int, alpha: float, pixels: int, seed: int
) -> Dealt:
    """A data set dealt to clients by a Dirichlet distribution, and to the server.

    Args:
        data: images or texts.
        samples: of all clients, drawn at random; validation data and the rest are other samples.
        num_clients: how many.
        alpha: concentration of the classes of a client.
        pixels: side to which larger images are averaged.
        seed: of the draws.
    """
    splits = load(data)
    inputs, targets = splits.train[:]
    order = torch.randperm(len(inputs), generator=generator(seed, "samples"))
    number = min(samples, len(inputs) // 2)
    held = number + min(_VALIDATION, number // 4)
    parts = [
        TensorDataset(smaller(inputs[own], pixels), targets[own])
        for own in (order[:number], order[number:held], order[held:])
    ]
    tests = splits.test[:]
    test = TensorDataset(smaller(tests[0], pixels), tests[1])
    clients: list[Any] = [*deal(parts[0], DirichletPartitioner(alpha), num_clients, seed)]
    shape = tuple(test.tensors[0].shape[1:])
    return Dealt(clients, parts[1], parts[2], test, shape, splits.num_classes)


def unlabelled(
    kind: Unlabelled, found: Dealt, other: DataSource | None, pixels: int, seed: int
) -> TensorDataset:
    """Data that the server distils on, as many as samples that nobody holds; see `Unlabelled`."""
    own = found.rest.tensors[0]
    if kind == "own":
        return found.rest
    if kind == "other":
        assert other is not None
        inputs, targets = load(other).train[:]
        return TensorDataset(smaller(inputs[: len(own)], pixels), targets[: len(own)])
    source = generator(seed, "unlabelled")
    if not own.is_floating_point():  # words
        drawn = torch.randint(1, int(own.max()) + 1, own.shape, generator=source)
        return TensorDataset(drawn, torch.zeros(len(drawn), dtype=torch.int64))
    if kind == "noise":
        uniform, targets = noise_inputs(found.shape, len(own), seed).tensors
        return TensorDataset((uniform - 0.5) * 12**0.5, targets)  # of variance 1, as the images are
    seen = found.validation.tensors[0].flatten(1)
    mean = seen.mean(dim=0)
    weights = torch.randn(len(own), len(seen), generator=source) / len(seen) ** 0.5
    drawn = (mean + weights @ (seen - mean)).view(own.shape)
    return TensorDataset(drawn, torch.zeros(len(drawn), dtype=torch.int64))


def prototypes_run(
    data: DataSource,
    samples: int,
    num_clients: int,
    alpha: float,
    pixels: int,
    rounds: int,
    epochs: int,
    steps: int,
    source: Unlabelled,
    seed: int,
    other: DataSource | None = None,
) -> dict[str, Any]:
    """Accuracies of every prototype, before and after the distillation of each round."""
    found = dealt(data, samples, num_clients, alpha, pixels, seed)
    makers: list[Callable[[], nn.Module]] = [
        partial(StridedNetwork, found.shape, found.classes, 16),
        partial(StridedNetwork, found.shape, found.classes, 8),
        partial(MLP, found.shape, found.classes, [128]),
    ]
    algorithm = FedDF(
        epochs=epochs,
        batch_size=64,
        unlabelled=unlabelled(source, found, other, pixels, seed),
        validation=found.validation,
        distillation=Distillation(steps),
    )
    run = federate_prototypes(
        makers,
        [found.clients[place :: len(makers)] for place in range(len(makers))],
        algorithm,
        rounds=rounds,
        seed=seed,
        test=found.test,
        progress=False,
    )
    names = ("mean_accuracies", "test_accuracies", "ensemble_accuracy")
    return {name: [entry[name] for entry in run.rounds] for name in names}


def rounds_run(
    data: DataSource,
    model: MakeModel,
    algorithm: FederatedAlgorithm,
    samples: int,
    num_clients: int,
    clients_per_round: int,
    alpha: float,
    pixels: int,
    rounds: int,
    steps: int,
    seed: int,
    source: Unlabelled = "own",
    other: DataSource | None = None,
) -> dict[str, Any]:
    """Test accuracy after every round of clients with one network; FedDF is given its data here."""
    found = dealt(data, samples, num_clients, alpha, pixels, seed)
    if isinstance(algorithm, FedDF):
        given = unlabelled(source, found, other, pixels, seed)
        algorithm = FedDF(
            algorithm.lr,
            algorithm.batch_size,
            algorithm.epochs,
            unlabelled=given,
            validation=found.validation,
            distillation=Distillation(steps),
        )
    run = federate(
        lambda: model(found.shape, found.classes),
        found.clients,
        algorithm,
        rounds=rounds,
        clients_per_round=clients_per_round,
        seed=seed,
        test=found.test,
        evaluate_every=1,
        progress=False,
    )
    names = ("test_accuracy", "mean_accuracy", "ensemble_accuracy", "distilled_accuracy")
    return {name: [one[name] for one in run.rounds] for name in names if name in run.rounds[0]}


def smaller(images: Tensor, pixels: int) -> Tensor:
    """Images averaged over blocks to that many pixels a side; what is no image stays."""
    factor = images.shape[-1] // pixels if images.ndim == 4 else 1
    return functional.avg_pool2d(images, factor) if factor > 1 else images


def gains(found: Records, source: Any) -> dict[str, Any]:
    """Points of each prototype before and after the distillation, and of the ensemble."""
    rows = found.where(part="prototypes", unlabelled=source)
    before, after = (
        [to_points(column) for column in zip(*(one[name][0] for one in rows), strict=True)]
        for name in ("mean_accuracies", "test_accuracies")
    )
    gains = [late - early for early, late in zip(before, after, strict=True)]
    return {
        "before": before,
        "after": after,
        "gains": gains,
        "gain": round(fmean(gains), 1),
        "ensemble": to_points([one["ensemble_accuracy"][0] for one in rows]),
        "told": [f"{a:.1f} → {b:.1f}" for a, b in zip(before, after, strict=True)],
    }


def needed(found: Records) -> dict[str, list[int]]:
    """Rounds by method and seed until where FedAvg of that seed ends: its last two rounds' mean."""
    curves = {name: [one["test_accuracy"] for one in found.where(method=name)] for name in METHODS}
    targets = [fmean(curve[-2:]) for curve in curves["FedAvg"]]
    return {
        name: [rounds_to(curve, target) for curve, target in zip(own, targets, strict=True)]
        for name, own in curves.items()
    }


def curves(found: Records) -> dict[str, Any]:
    """Mean test accuracy in percent after every round, by method."""
    curves = {name: [one["test_accuracy"] for one in found.where(method=name)] for name in METHODS}
    return {
        name: (range(1, len(own[0]) + 1), [100 * fmean(at) for at in zip(*own, strict=True)])
        for name, own in curves.items()
    }
