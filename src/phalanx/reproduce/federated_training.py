"""Federated runs of recipes: accuracy after every round, on validation and test data."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import TensorDataset

from phalanx.data import DataSource, Partitioner
from phalanx.experiments import load
from phalanx.federated import FederatedAlgorithm, deal, federate
from phalanx.losses import cross_entropy
from phalanx.models import MLP
from phalanx.randomness import generator
from phalanx.training import Callback, Run


@dataclass
class _Curve(Callback):
    """Validation accuracy after every round."""

    validation: TensorDataset
    values: list[float]

    @torch.no_grad()
    def on_round(self, run: Run, entry: Mapping[str, Any]) -> None:
        """Measures it."""
        inputs, targets = self.validation.tensors
        right = run.model(inputs).argmax(dim=1) == targets
        self.values.append(right.double().mean().item())


def federated_run(
    data: DataSource,
    algorithm: FederatedAlgorithm,
    partitioner: Partitioner,
    num_clients: int,
    clients_per_round: int,
    rounds: int,
    samples: int,
    seed: int,
    rule: Any = None,
) -> dict[str, Any]:
    """Accuracies after every round, of an MLP without random layers.

    Args:
        data: the images.
        algorithm: what is run.
        partitioner: how training data are dealt out.
        num_clients: to how many.
        clients_per_round: of whom so many take part.
        rounds: how many.
        samples: training samples of all clients; a quarter as many others are for validation.
        seed: of everything random, the choice of samples among it.
        rule: of the server; the mean by default.
    """
    splits = load(data)
    inputs, targets = splits.train[:]
    order = torch.randperm(len(inputs), generator=generator(seed, "samples"))
    number = min(samples, len(inputs) * 4 // 5)
    own, held = order[:number], order[number : number + max(1, number // 4)]
    clients = deal(TensorDataset(inputs[own], targets[own]), partitioner, num_clients, seed)
    curve = _Curve(TensorDataset(inputs[held], targets[held]), [])
    run = federate(
        lambda: MLP(splits.input_shape, splits.num_classes),
        clients,
        algorithm,
        rounds=rounds,
        clients_per_round=clients_per_round,
        loss=cross_entropy,
        seed=seed,
        test=splits.test,
        evaluate_every=1,
        callbacks=[curve],
        progress=False,
        **({} if rule is None else {"rule": rule}),
    )
    return {
        "validation": curve.values,
        "test": [entry["test_accuracy"] for entry in run.rounds],
        "message_bytes": run.result["message_bytes"],
        "broadcast_bytes": run.result["broadcast_bytes"],
    }


def rounds_to(curve: list[float], target: float) -> int:
    """The first round after which the mean of two rounds is at the target; one more than all."""
    pairs = itertools.pairwise(curve)
    reached = (place for place, pair in enumerate(pairs, 2) if sum(pair) / 2 >= target)
    return next(reached, len(curve) + 1)
