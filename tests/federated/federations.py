"""Small federations that the tests of the room share."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import phalanx
from phalanx.federated import (
    Distillation,
    FedAvg,
    FedDF,
    FedProx,
    FrozenAdam,
    FrozenMomentum,
    FrozenSGD,
    FrozenTorch,
    Mime,
    MimeLite,
    Scaffold,
    SecureSum,
    noise_inputs,
)
from phalanx.training import Local

ALGORITHMS = [
    FedAvg(),
    FedAvg(momentum=0.9, weight_decay=0.01, num_steps=3),
    FedProx(proximal=0.5, epochs=2),
    Scaffold(),
    Scaffold(option=1, epochs=2),
    Mime(base=FrozenMomentum()),
    Mime(lr=0.01, control="stale"),
    MimeLite(base=FrozenSGD()),
    MimeLite(lr=0.01, base=FrozenAdam()),
    MimeLite(lr=0.01, base=FrozenTorch()),
]
ALGORITHMS.append(FedDF(unlabelled=noise_inputs((4,), 30), distillation=Distillation(num_steps=5)))
ONE_BY_ONE = Local(chunk_size=1)


def linear(dim=4, classes=3):
    """A model with weights of its own."""
    return nn.Linear(dim, classes)


def federation(sizes=(1, 5, 12, 7), dim=4, classes=3, seed=0):
    """Clients of such sizes, one of them with a single sample."""
    draws = torch.Generator().manual_seed(seed)
    return [
        TensorDataset(
            torch.randn(size, dim, generator=draws),
            torch.randint(classes, (size,), generator=draws),
        )
        for size in sizes
    ]


def run(algorithm, clients=None, model=linear, rounds=3, **options):
    """A run without progress; its model's weights are those of seed 0."""
    clients = federation() if clients is None else clients
    return phalanx.federate(
        model, clients, algorithm, rounds=rounds, **{"progress": False, **options}
    )


def weights(found):
    """All parameters of a run's model, flat."""
    return torch.cat([one.detach().flatten() for one in found.model.parameters()])


def same_secure_sums(engine):
    """Whether a run under secure sums has the bits of one process on this engine."""
    found = [run(Scaffold(), engine=one, aggregation=SecureSum()) for one in (engine, ONE_BY_ONE)]
    return weights(found[0]).equal(weights(found[1]))
