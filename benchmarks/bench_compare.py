"""Cells a minute: `phalanx.experiments` against the peer's benchmark, on one grid.

    python benchmarks/bench_compare.py [--quick] [--jobs 2] [--steps 50]

MNIST (`PHALANX_DATA` names the file), the peer's small convolutional network, 12 workers, 2 of them
bad; three rules and the mean under three attacks and none. Both sides run the same cells in as many
processes of one thread, see as many samples a round, and measure accuracy on the whole test set as
often; starting processes and loading data count. The peer's runner needs torchvision; its classes
are driven here as it drives them, from images that lie ready in memory.
"""

import argparse
import multiprocessing
import os
import time
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from measurement import write_measurement
from peer import Federation, load_byzfl
from phalanx.aggregation import GeometricMedian, Krum, TrimmedMean
from phalanx.attacks import FixedWorkers, InnerProductManipulation, OptimalALittleIsEnough, SignFlip
from phalanx.data import NpzFile
from phalanx.experiments import Comparison, compare
from side_by_side import environment

CLAIM = "Cells of a comparison a minute, against the peer's benchmark (goal: 5 times as many)"
TARGET = 5.0
WORKERS, LIARS, SAMPLES = 12, 2, 25
RULES = {
    "Average": {},
    "Krum": {"f": LIARS},
    "GeometricMedian": {"nu": 0.1, "T": 3},
    "TrMean": {"f": LIARS},
}
ATTACKS = {
    None: {},
    "SignFlipping": {},
    "InnerProductManipulation": {"tau": 2.0},
    "Optimal_ALittleIsEnough": {},
}


class PeersModel(nn.Module):
    """The layers of the peer's `cnn_mnist`; our loss takes the logits."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)])
        self.hidden, self.out = nn.Linear(800, 500), nn.Linear(500, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        for convolution in self.convolutions:
            inputs = max_pool2d(convolution(inputs).relu(), 2)
        return self.out(self.hidden(inputs.flatten(1)).relu())


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def our_comparison(data: NpzFile, steps: int, every: int, jobs: int) -> Comparison:
    return compare(
        rules=[Krum(), GeometricMedian(), TrimmedMean()],
        attacks=[SignFlip(), InnerProductManipulation(epsilon=2.0), OptimalALittleIsEnough()],
        seeds=[0],
        num_workers=WORKERS,
        num_byzantine=LIARS,
        byzantine=FixedWorkers(list(range(WORKERS - LIARS, WORKERS))),
        data=data,
        model=PeersModel,
        optimizer=sgd,
        steps=steps,
        batch_size=SAMPLES * WORKERS,
        evaluate_every=every,
        jobs=jobs,
    )


def peer_cell(work: tuple[str, str | None, NpzFile, int, int]) -> float:
    """One of the peer's trainings, its data loaded as its runner does, once a training."""
    rule, attack, data, steps, every = work
    torch.set_num_threads(1)
    splits = data.load()
    aggregator = {"name": rule, "parameters": RULES[rule]}
    lie = None
    if attack is not None:
        told = {"aggregator_info": aggregator, "pre_agg_list": [], "f": LIARS}
        parameters = {**ATTACKS[attack], **(told if attack.startswith("Optimal") else {})}
        lie = {"name": attack, "f": LIARS, "parameters": parameters}
    federation = Federation(
        load_byzfl(),
        "cnn_mnist",
        splits.train,
        WORKERS,
        LIARS if attack is not None else 0,
        samples=SAMPLES,
        learning_rate=0.05,
        aggregator=aggregator,
        attack=lie,
        test=splits.test,
    )
    for _ in range(steps // every):
        federation.rounds(every)
        accuracy = federation.server.compute_test_accuracy()
    return float(accuracy)


def peer_seconds(data: NpzFile, steps: int, every: int, jobs: int) -> float:
    work = [(rule, attack, data, steps, every) for rule, attack in product(RULES, ATTACKS)]
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        pool.map(peer_cell, work, chunksize=1)
    return time.perf_counter() - start


def our_seconds(data: NpzFile, steps: int, every: int, jobs: int) -> tuple[float, int]:
    start = time.perf_counter()
    records = our_comparison(data, steps, every, jobs).records
    seconds = time.perf_counter() - start
    assert {one.status for one in records} == {"finished"}
    for one in records:
        took = f"{one.seconds:7.1f} s, {1e3 * one['round_seconds']:6.0f} ms"
        print(f"{one['method']:16} {one['attack']:10} {took}")
    return seconds, len(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing is written")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    place = os.environ.get("PHALANX_DATA")
    if place is None:
        raise SystemExit("PHALANX_DATA must name an .npz file of the MNIST family")
    torch.set_num_threads(1)
    steps = 4 if options.quick else options.steps
    every = max(1, steps // 2)
    data = NpzFile(place)
    ours, number = our_seconds(data, steps, every, options.jobs)
    print(f"phalanx: {number} cells in {ours:.1f} s, {60 * number / ours:.1f} a minute")
    if load_byzfl() is None:
        raise SystemExit("byzfl is not installed: make bench installs it")
    theirs = peer_seconds(data, steps, every, options.jobs)
    print(f"byzfl: {60 * number / theirs:.1f} a minute; ratio {theirs / ours:.2f}")
    if options.quick:
        return
    row = {
        "cells": number,
        "rounds": steps,
        "jobs": options.jobs,
        "phalanx": 60 * number / ours,
        "byzfl": 60 * number / theirs,
        "ratio": theirs / ours,
        "target": TARGET,
        "met": theirs / ours >= TARGET,
    }
    columns = {
        "cells": "cells",
        "rounds": "rounds of a cell",
        "jobs": "processes",
        "phalanx": "Phalanx (cells a minute)",
        "byzfl": "byzfl (cells a minute)",
        "ratio": "ratio",
        "met": "at least 5",
    }
    remark = (
        "Both sides compute the same gradients by the same convolution kernels, which bounds what "
        "a runner can gain. The peer's bad workers compute nothing, ours do; the peer is spared "
        "the scaling of images that its own runner does."
    )
    env = environment("phalanx", "torch", "byzfl") | {"threads": 1}
    write_measurement("compare", CLAIM, env, [row], columns, remark)


if __name__ == "__main__":
    main()
