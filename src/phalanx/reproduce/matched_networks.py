"""Runs of the recipe on matched averaging: one shot with one hidden layer, and rounds of a CNN."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from phalanx.data import DataSource, DirichletPartitioner
from phalanx.data.text import read_text
from phalanx.experiments import load
from phalanx.federated import ClientTraining, FedMA, Matching, fedma, fuse, neuron_layout
from phalanx.losses import Loss, cross_entropy
from phalanx.models import MLP
from phalanx.randomness import generator, seeded
from phalanx.reproduce.distilled_federations import smaller


class Setting(NamedTuple):
    """Data and network of a federation.

    Attributes:
        clients: the clients' data sets.
        test: what networks are tested on.
        classes: how many there are.
        make: makes a network.
    """

    clients: list[TensorDataset]
    test: TensorDataset
    classes: int
    make: Callable[[], nn.Module]


_ALPHA = 0.5  # of the Dirichlet distribution of classes over clients


def clients_of(
    data: DataSource, num_clients: int, samples: int, pixels: int, seed: int
) -> tuple[list[TensorDataset], TensorDataset, int]:
    """Clients' data sets by a Dirichlet distribution, a test set and the number of classes.

    Args:
        data: images.
        num_clients: how many; draws that leave one with fewer than 10 images are repeated.
        samples: training images, drawn at random; the test set is the first quarter as many.
        pixels: side of the images, which are averaged over blocks to it.
        seed: of the draws.
    """
    splits = load(data)
    inputs, targets = splits.train[:]
    chosen = torch.randperm(len(targets), generator=generator(seed, "images"))[:samples]
    inputs, targets = smaller(inputs[chosen], pixels), targets[chosen]
    source, shares = generator(seed, "shares"), list[Tensor]()
    while min(map(len, shares), default=0) < 10:
        shares = DirichletPartitioner(_ALPHA).split(targets, num_clients, source)
    tests = [column[: samples // 4] for column in splits.test[:]]
    test = TensorDataset(smaller(tests[0], pixels), tests[1])
    return [TensorDataset(inputs[o], targets[o]) for o in shares], test, splits.num_classes


def one_shot_run(
    data: DataSource,
    samples: int,
    hidden: int,
    num_clients: int,
    epochs: int,
    retraining: int,
    seed: int,
) -> dict[str, Any]:
    """Networks of one hidden layer, trained apart, put together in one shot in several ways."""
    clients, test, classes = clients_of(data, num_clients, samples, 28, seed)
    training = ClientTraining(epochs, lr=0.05, batch_size=32)
    shape, counts = tuple(test.tensors[0].shape[1:]), _counts(clients, classes)

    def trained(alike: bool) -> list[nn.Module]:
        found = list[nn.Module]()
        for number, own in enumerate(clients):
            with seeded(seed, "weights", 0 if alike else number):
                model = MLP(shape, classes, hidden=[hidden])
            training.train(model, own, cross_entropy, seed, "local", number)
            found.append(model)
        return found

    def retrain(number: int, model: nn.Module) -> None:
        again = ClientTraining(retraining, lr=0.05, batch_size=32)
        again.train(model, clients[number], cross_entropy, seed, "retrain", number)

    models = trained(alike=False)
    fused = fuse(models, counts, seed=seed).model
    again = fuse(models, counts, retrain=retrain, seed=seed).model
    layout = neuron_layout(fused)
    return {
        "local": sum(accuracy([one], test) for one in models) / len(models),
        "averaged": accuracy([averaged(models, counts)], test),
        "averaged, same start": accuracy([averaged(trained(alike=True), counts)], test),
        "ensemble": accuracy(models, test),
        "FedMA": accuracy([fused], test),
        "FedMA, retrained": accuracy([again], test),
        "width": sum(layout.widths(fused.state_dict()).values()),
    }


@dataclass(frozen=True)
class ImageClients:
    """Clients with images, dealt out by a Dirichlet distribution, and a narrow VGG-9."""

    data: DataSource
    """Images."""
    samples: int
    """Training images, drawn at random."""
    pixels: int
    """Side of the images, which are averaged to it."""
    width: int
    """Channels of the first layer."""
    num_clients: int
    """How many clients."""

    def load(self, seed: int) -> Setting:
        """Data and network."""
        clients, test, classes = clients_of(
            self.data, self.num_clients, self.samples, self.pixels, seed
        )
        shape = test.tensors[0].shape[1:]
        return Setting(clients, test, classes, partial(vgg9, shape, classes, self.width))


@dataclass(frozen=True)
class RoleClients:
    """Clients that are roles of plays, and an LSTM that says the next character at every place."""

    path: str | Path
    """A text of blocks that begin with `NAME:`, plain or gzip-compressed."""
    num_clients: int
    """The roles that say most."""
    characters: int
    """Of each, its first ones at most; the last fifth of them is for testing."""
    length: int = 80
    """Characters of a sequence."""
    hidden: int = 64
    """Units of the LSTM."""

    def load(self, seed: int) -> Setting:
        """Data and network; the seed draws nothing here."""
        text = read_text(self.path, "a text", 2**31)
        said: dict[str, str] = {}
        for block in text.split("\n\n"):
            name, colon, lines = block.partition(":\n")
            if colon and "\n" not in name:
                said[name] = said.get(name, "") + lines + "\n"
        chosen = sorted(said.values(), key=len, reverse=True)[: self.num_clients]
        number = {one: place for place, one in enumerate(sorted(set(text)))}
        clients, tests = list[TensorDataset](), list[Tensor]()
        for one in chosen:
            codes = torch.tensor([number[letter] for letter in one[: self.characters]])
            rows = codes[: len(codes) // self.length * self.length].view(-1, self.length)
            held = max(1, len(rows) // 5)
            clients.append(TensorDataset(rows[:-held, :-1], rows[:-held, 1:]))
            tests.append(rows[-held:])
        test = torch.cat(tests)
        classes = len(number)
        whole = TensorDataset(test[:, :-1], test[:, 1:])
        return Setting(clients, whole, classes, partial(CharacterNetwork, classes, self.hidden))


class CharacterNetwork(nn.Module):
    """An embedding of 8, one LSTM, and the next character at every place."""

    def __init__(self, classes: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 8)
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.decoder = nn.Linear(hidden, classes)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits, `(texts, places, characters)`."""
        found: Tensor = self.decoder(self.lstm(self.embedding(characters))[0])
        return found


def rounds_run(
    federation: ImageClients | RoleClients,
    rounds: int,
    method: str,
    training: ClientTraining,
    retraining: ClientTraining,
    mass: float,
    seed: int,
) -> dict[str, Any]:
    """A network after each round of a method, or the ensemble of networks trained apart.

    A round of every method sends one network of each client to the server.
    """
    clients, test, classes, make = federation.load(seed)
    with seeded(seed, "weights"):
        models = [make() for _ in clients]
    if method == "FedMA":
        algorithm = FedMA(rounds, training, retraining, matching=Matching(mass=mass))
        run = fedma(models, clients, algorithm, test=test, seed=seed, progress=False)
        return {
            "accuracies": [row["test_accuracy"] for row in run.rounds],
            "growth": run.rounds[-1]["growth"],
            "bytes": sum(row["message_bytes"] for row in run.rounds),
        }
    counts, found, mu = _counts(clients, classes), list[float](), 0.0
    if method == "FedProx":
        mu = 0.001
    size = sum(one.nbytes for one in models[0].state_dict().values()) * len(models)
    if method == "ensemble":
        for number, (model, own) in enumerate(zip(models, clients, strict=True)):
            for turn in range(rounds):
                training.train(model, own, cross_entropy, seed, turn, number)
        return {"accuracies": [accuracy(models, test)], "growth": float(len(models)), "bytes": size}
    server = models[0]
    for turn in range(rounds):
        for number, (model, own) in enumerate(zip(models, clients, strict=True)):
            model.load_state_dict(server.state_dict())
            training.train(model, own, _proximal(model, mu), seed, turn, number)
        server = averaged(models, counts)
        found.append(accuracy([server], test))
    return {"accuracies": found, "growth": 1.0, "bytes": size * rounds}


def _proximal(model: nn.Module, mu: float) -> Loss:
    """Cross-entropy, and the distance to where the model is now: FedProx."""
    if not mu:
        return cross_entropy
    start = [one.detach().clone() for one in model.parameters()]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(model.parameters(), start, strict=True)
        distance = torch.stack([(one - was).square().sum() for one, was in pairs]).sum()
        return cross_entropy(outputs, targets) + mu / 2 * distance

    return loss


def averaged(models: Sequence[nn.Module], counts: Tensor) -> nn.Module:
    """The mean of networks entry by entry, by their numbers of samples."""
    shares = (counts.sum(dim=1) / counts.sum()).tolist()
    states = [model.state_dict() for model in models]
    found = copy.deepcopy(models[0])
    mean = {
        name: sum(p * state[name] for p, state in zip(shares, states, strict=True))
        for name in states[0]
    }
    found.load_state_dict(mean)
    return found


@torch.no_grad()
def accuracy(models: Sequence[nn.Module], test: TensorDataset) -> float:
    """Test accuracy of the mean of networks' probabilities."""
    inputs, targets = test.tensors
    total = sum(
        torch.cat([functional.softmax(model.eval()(part), dim=-1) for part in inputs.split(500)])
        for model in models
    )
    assert isinstance(total, Tensor)
    return (total.argmax(dim=-1) == targets).float().mean().item()


def vgg9(shape: Sequence[int], classes: int, width: int) -> nn.Module:
    """Six convolutions and three linear layers with ReLU and without normalisation, by He's rule.

    The paper's network has 32 channels in its first layer (`width`), and 512 linear neurons.
    """
    layers, before = list[nn.Module](), shape[0]
    for place, factor in enumerate([1, 2, 4, 4, 8, 8]):
        layers += [nn.Conv2d(before, factor * width, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place % 2 else []
        before = factor * width
    layers += [nn.Flatten()]
    before *= (shape[1] // 8) * (shape[2] // 8)
    for after in (16 * width, 16 * width):
        layers += [nn.Linear(before, after), nn.ReLU()]
        before = after
    model = nn.Sequential(*layers, nn.Linear(before, classes))
    for one in model:
        if isinstance(one, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(one.weight, nonlinearity="relu")
            assert one.bias is not None
            nn.init.zeros_(one.bias)
    return model


def _counts(clients: Sequence[TensorDataset], classes: int) -> Tensor:
    targets = [one.tensors[1].flatten() for one in clients]
    return torch.stack([torch.bincount(one, minlength=classes) for one in targets])
