"""What the recipes of compressors share: training on CIFAR-10, and the clock of a link."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from phalanx.communication import Link
from phalanx.compression import Compressor
from phalanx.data import DataSource
from phalanx.experiments import Cell, Record, Records, build, compressed_run, grid, load, tuned
from phalanx.experiments.runs import MakeModel
from phalanx.fetch import fetch
from phalanx.planning import CompressorPlanner
from phalanx.reproduce.base import Images, Measure, Scope, sized

BANDWIDTHS = {"10 Mbit/s": 1e7, "100 Mbit/s": 1e8, "1 Gbit/s": 1e9}
"""Of the links that times are computed for."""
NUM_WORKERS = 4


def convolutional(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Three 3 x 3 convolutions of stride 2 (16, 32 and 64 filters) and a linear layer.

    33 834 weights on CIFAR-10: small, so that a grid of methods and rates is trained in minutes.
    """
    channels, *sides = input_shape
    layers: list[nn.Module] = []
    for filters in (16, 32, 64):
        layers += [nn.Conv2d(channels, filters, 3, stride=2, padding=1), nn.ReLU()]
        channels, sides = filters, [-(-side // 2) for side in sides]
    outputs = channels * sides[0] * sides[1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(outputs, num_classes))


def cifar10(scope: Scope) -> Images:
    """CIFAR-10 as it was given; digits at size quick."""
    return scope.images(("cifar10_12k.npz", "cifar10.npz"), "CIFAR-10", ("default", "full"))


@dataclass(frozen=True)
class CifarTraining:
    """Training a convolutional network by four workers, with several compressors."""

    methods: ClassVar[Mapping[str, Compressor]]
    """What is compared."""

    epochs: int = sized(3, 6, 40)
    """Passes over the images."""
    num_seeds: int = sized(1, 2, 5)
    """Runs that are averaged."""
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Learning rates, of which each method has the one that the first seed shows to be best."""
    samples: int = 64
    """Per worker and round."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method with every learning rate and seed."""
        seeds = range(self.num_seeds)
        axes: dict[str, Any] = {"compressor": self.methods, "rate": self.rates, "seed": seeds}
        fixed = {"data": cifar10(scope).source, "model": convolutional}
        fixed |= {"num_workers": NUM_WORKERS, "epochs": self.epochs, "samples": self.samples}
        return grid(compressed_run, axes, fixed | self.options(scope))

    def options(self, scope: Scope) -> dict[str, Any]:
        """What `compressed_run` is told besides."""
        return {}

    def measure(self, scope: Scope, run: Measure) -> Records:
        """The first seed chooses the learning rate of each method."""
        return tuned(self.cells(scope), "rate", "train_loss", run)


def round_costs(
    *, data: DataSource, compressor: Compressor, samples: int, model: MakeModel = convolutional
) -> dict[str, float]:
    """What a round of four workers costs, by the planner's model: measured but for the link.

    Returns:
        `compute_s` and `overhead_s`, seconds of a gradient, and of encoding, decoding and
        averaging; `wire_bytes` and `num_hops` of a worker; `payload_bytes` of its messages.
    """
    splits = load(data)
    network = build(model, splits, 0)
    batch = fetch(splits.train, torch.arange(samples))
    planner = CompressorPlanner(Link(), NUM_WORKERS, (compressor,), num_rounds=7)
    one = next(found for found in planner.plan(network, *batch) if found.compressor != "none")
    return {
        "compute_s": one.own_s - one.overhead_s,
        "overhead_s": one.overhead_s,
        "wire_bytes": one.wire_bytes,
        "num_hops": one.num_hops,
        "payload_bytes": one.payload_bytes,
    }


def seconds_per_round(costs: Record, compute_s: float, bandwidth: float) -> float:
    """Of a worker: its gradient, its share of compression, and the link, one after the other."""
    link = Link(rate=bandwidth).seconds(costs["wire_bytes"], costs["num_hops"])
    return float(compute_s + costs["overhead_s"] + link)
