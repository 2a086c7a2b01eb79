"""Synthetic records as files, and what they are worth to a classifier."""

import csv
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from phalanx.files import whole
from phalanx.models import MLP
from phalanx.privacy.generation.domain import Domain
from phalanx.privacy.generation.private_data import PrivateData
from phalanx.randomness import generator, seeded


def check_output(path: Path, domain: Domain) -> None:
    """Raises a `ValueError` unless the file's name fits the kind of records."""
    kind = ".csv" if domain.columns else ".npz"
    if path.suffix != kind:
        raise ValueError(f"out must end in {kind} for these records, got {path}")


def write_synthetic(
    path: Path, domain: Domain, x: Float[Tensor, "n d"], y: Int[Tensor, " n"]
) -> None:
    """Writes synthetic records as the private ones were: `.npz` or CSV; whole or not at all."""
    check_output(path, domain)
    labels = [domain.classes[number] for number in y.tolist()]
    with whole(path) as beside:
        if domain.columns:
            table = domain.decode_table(x)
            with beside.open("w", encoding="utf-8", newline="") as text:
                writer = csv.writer(text)
                writer.writerow([*table, domain.label])
                writer.writerows(zip(*table.values(), labels, strict=True))
        else:
            images = domain.decode(x)
            if len(domain.shape) == 3:
                images = images[:, 0] if domain.shape[0] == 1 else np.moveaxis(images, 1, 3)
            with beside.open("wb") as file:
                np.savez_compressed(file, x_train=images, y_train=np.array(labels))


def downstream_accuracy(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    data: PrivateData,
    seed: int = 0,
    steps: int = 600,
) -> float:
    """Accuracy on the real test records of a classifier that saw synthetic records alone.

    Nothing is chosen by the test records, nor by other real ones: the classifier, its learning rate
    and its steps are fixed, and its last weights count. Images are given to two convolutions with
    16 and 32 filters and a layer of 64, rows to hidden layers of 64 and 32; Adam, batches of 64.

    Args:
        x: synthetic records in [-1, 1].
        y: their classes.
        data: holds the test records.
        seed: of weights and batches.
        steps: of training.

    Raises:
        ValueError: if there are no test records.
    """
    if data.x_test is None or data.y_test is None:
        raise ValueError("data must hold test records for an accuracy, got none")
    shape, num_classes = data.domain.record_shape, len(data.domain.classes)
    with seeded(seed, "classifier"):
        model = _classifier(shape, num_classes)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    chance = generator(seed, "batches")
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=chance)
        loss = nn.functional.cross_entropy(model(x[rows].view(-1, *shape)), y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = torch.cat(
            [model(part.view(-1, *shape)).argmax(dim=1) for part in data.x_test.split(1000)]
        )
    return (found == data.y_test).double().mean().item()


def _classifier(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    if len(shape) != 3 or min(shape[1:]) < 8:
        return MLP(shape, num_classes, hidden=(64, 32))
    channels, height, width = shape
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU()),
        nn.Linear(64, num_classes),
    )
