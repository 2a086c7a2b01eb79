"""Training on a ring of nodes that gossip, all of them in one process, as its recipe needs it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from phalanx.data import Partitioner, Splits
from phalanx.errors import NotFiniteError
from phalanx.gossip import (
    AllReduceAveraging,
    Gossip,
    ParameterGossip,
    Replicas,
    SimulatedNetwork,
    Topology,
    spread,
)
from phalanx.models import MLP
from phalanx.optimizers import GossipOptimizer
from phalanx.randomness import generator, seeded
from phalanx.training import evaluate


class Trained(NamedTuple):
    """How one method ended; where it diverged, its losses are infinite and it guesses.

    Attributes:
        accuracy: test accuracy of the model with the mean of all nodes' weights, in percent.
        loss: training loss of that model.
        distance: of the nodes' weights to their mean, relative to the length of that, in percent.
        num_bytes: what a node sent in a step.
    """

    accuracy: float
    loss: float
    distance: float
    num_bytes: float


def averaged(runs: Sequence[Trained]) -> Trained:
    """The mean of each figure."""
    return Trained(*(mean(column) for column in zip(*runs, strict=True)))


@dataclass(frozen=True)
class RingTraining:
    """What the runs have in common: Nesterov's momentum, and a learning rate as the authors' falls.

    It is warmed up over the first sixtieth of the run, and falls to a tenth after a half, and again
    after three quarters.
    """

    splits: Splits
    """The data."""
    num_nodes: int
    """On the ring."""
    hidden: tuple[int, ...]
    """Widths of the layers."""
    samples: int
    """A node and step."""
    steps: int
    """Of training."""
    rate: float = 0.1
    """Learning rate, once it is warm."""

    def tuned(self, rates: Iterable[float], shards: Partitioner) -> "RingTraining":
        """With the learning rate that gives an all-reduce the lowest training loss."""
        candidates = [replace(self, rate=rate) for rate in rates]
        return min(candidates, key=lambda one: one.run(AllReduceAveraging(), shards, 0).loss)

    def runs(self, algorithm: Gossip, shards: Partitioner, seeds: Iterable[int]) -> list[Trained]:
        """A run for each seed."""
        return [self.run(algorithm, shards, seed) for seed in seeds]

    def run(self, algorithm: Gossip, shards: Partitioner, seed: int) -> Trained:
        """One run; every method sees the same batches and starts with the same weights."""
        inputs, targets = self._held(shards, seed)
        with seeded(seed, "weights"):
            model = MLP(self.splits.input_shape, self.splits.num_classes, self.hidden)
        replicas = Replicas(model, self.num_nodes)
        network = SimulatedNetwork(Topology.ring(self.num_nodes))
        gossip = ParameterGossip(replicas.by_name(), algorithm, network, seed=seed)
        sgd = SGD(replicas.parameters(), lr=self.rate, momentum=0.9, nesterov=True)
        optimizer, schedule = GossipOptimizer(sgd, gossip), LambdaLR(sgd, self._factor)
        for step in range(self.steps):
            batches = [
                torch.randint(len(own), (self.samples,), generator=generator(seed, step, node))
                for node, own in enumerate(targets)
            ]
            x, y = (
                torch.stack([own[batch] for own, batch in zip(held, batches, strict=True)])
                for held in (inputs, targets)
            )
            optimizer.zero_grad()
            each = cross_entropy(replicas(x).flatten(0, 1), y.flatten(), reduction="none")
            each.view(self.num_nodes, -1).mean(dim=1).sum().backward()
            try:
                optimizer.step()
            except NotFiniteError:
                sent = network.bytes_sent.double().mean().item() / max(1, step)
                return Trained(100 / self.splits.num_classes, math.inf, math.inf, sent)
            schedule.step()
        sent = network.bytes_sent.double().mean().item() / self.steps
        return self._ended(replicas, sent)

    def _factor(self, step: int) -> float:
        """On the learning rate."""
        done = step / self.steps
        warm = min(1.0, 60 * (step + 1) / self.steps)
        return warm * (1.0 if done < 1 / 2 else 0.1 if done < 3 / 4 else 0.01)

    def _held(self, shards: Partitioner, seed: int) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and targets of every node."""
        inputs, targets = self.splits.train[:]
        split = shards.split(targets, self.num_nodes, generator(seed, "shards"))
        return [inputs[own] for own in split], [targets[own] for own in split]

    def _ended(self, replicas: Replicas, num_bytes: float) -> Trained:
        middle, train, test = replicas.model(), self.splits.train, self.splits.test
        accuracy = evaluate(middle, cross_entropy, test, train).accuracy
        assert accuracy is not None  # targets are classes
        loss = evaluate(middle, cross_entropy, train, train).loss
        apart = sum(spread(one) for one in replicas.parameters()) / self.num_nodes
        length = sum(one.square().sum().item() for one in middle.parameters())
        return Trained(100 * accuracy, loss, 100 * (apart / length) ** 0.5, num_bytes)
