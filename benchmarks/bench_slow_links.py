"""Compressors on slow links: real gloo ranks, each behind a link of its own.

    python benchmarks/bench_slow_links.py [--quick] [--part steps|training|all] [--ranks 2]

As root on Linux, with iproute2: every rank has a network namespace whose interface is limited by
token buckets (`slow_links.py`). Elsewhere it says so and writes nothing.

Steps: a network of 2.6 M parameters, few samples, so that links decide; DDP's own all-reduce and
compressors, by the clock and by the bytes that the interface counted, headers included; beside them
what `phalanx plan --link` predicts from one process. Training: MNIST (or digits) until a test
accuracy is reached.
"""

import argparse
import datetime
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from measurement import cell, write_measurement
from phalanx.compression import (
    Compressor,
    ErrorFeedback,
    HalfPrecision,
    Link,
    Memory,
    PowerSGD,
    RandomBlock,
    ScaledSign,
    TopK,
    communicate,
)
from phalanx.data import DataSource, Digits, NpzFile
from phalanx.models import MLP
from phalanx.training import LinkPlanner, bits_per_second
from side_by_side import environment
from slow_links import Cluster, UnsupportedError, own_bytes

CLAIM = "Compressed gradients on links of 10 Mbit/s to 1 Gbit/s"
COMPRESSORS: dict[str, Compressor | None] = {
    "DDP": None,
    "half precision": HalfPrecision(),
    "scaled sign": ErrorFeedback(ScaledSign()),
    "top-k 1 %": ErrorFeedback(TopK(ratio=0.01)),
    "random block 1 %": ErrorFeedback(RandomBlock(ratio=0.01, rescale=False)),
    "PowerSGD, rank 2": ErrorFeedback(PowerSGD(rank=2)),
}
TRAINED = ("DDP", "half precision", "scaled sign", "top-k 1 %", "PowerSGD, rank 2")
LINKS: dict[str, str | None] = {
    "none": None,
    "1 Gbit/s": "1gbit",
    "100 Mbit/s": "100mbit",
    "10 Mbit/s": "10mbit",
}
"""By name; none is without any limit."""
WIDTH, DEPTH, SAMPLES = 800, 4, 16  # 2.6 M parameters
RANKS = "{} gloo ranks on one machine, each in a network namespace"
STEPS = (
    "Bytes are those that a rank's interface sent, headers included; the model is the planner's "
    "count without headers. Predictions are those of `phalanx plan --link`, from one process. "
    "After a pause the links let 64 kB pass at once, more than half of the smallest messages, "
    "which are quicker than predicted for it. DDP sends while it computes."
)
TRAINING_CLAIM = "Training to equal accuracy at 100 Mbit/s"
TRAINING = (
    "An MLP with two hidden layers of 512, batches of 64 a rank, SGD with momentum and one "
    "learning rate for all; accuracy is looked at every 20 steps, off the clock. A dash: not "
    "reached in the time given."
)
TRAINING_COLUMNS = {
    "way": "gradients by",
    "data": "data",
    "target": "test accuracy",
    "seconds": "seconds",
    "steps": "steps",
    "speedup": "times as fast as DDP",
}
COLUMNS = {
    "link": "link",
    "way": "gradients by",
    "median_s": "s a step",
    "speedup": "times as fast as DDP",
    "nic_mb": "MB a step",
    "nic_over_wire": "/ model",
    "predicted_s": "predicted s",
    "predicted_over": "/ measured",
}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers)


class Averaged:
    """A model whose gradients are averaged by DDP, or by a compressor after the backward pass."""

    def __init__(self, model: nn.Module, compressor: Compressor | None) -> None:
        self.compressor, self.memory = compressor, Memory()
        self.model = model if compressor is not None else DistributedDataParallel(model)

    def backward(self, inputs: Tensor, targets: Tensor) -> None:
        """Leaves the mean gradient of all ranks with the parameters."""
        self.model.zero_grad()
        cross_entropy(self.model(inputs), targets).backward()
        if self.compressor is None:
            return
        named = {
            name: value for name, value in self.model.named_parameters() if value.grad is not None
        }
        own = {name: value.grad for name, value in named.items() if value.grad is not None}
        mean, self.memory = communicate(self.compressor, own, self.memory)
        for name, value in named.items():
            value.grad = mean[name]


def join(store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=datetime.timedelta(seconds=120),
    )


def rank_steps(store: str, steps: int) -> None:
    """On every rank: seconds and bytes of steps of every way; rank 0 prints them."""
    join(store)
    found = {}
    inputs = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(dist.get_rank()))
    targets = torch.zeros(SAMPLES, dtype=torch.int64)
    for name, compressor in COMPRESSORS.items():
        averaged = Averaged(network(), compressor)
        for _ in range(2):  # DDP cuts its buckets anew after the first
            averaged.backward(inputs, targets)
        dist.barrier()
        before, times = own_bytes(), []
        for _ in range(steps):
            began = time.perf_counter()
            averaged.backward(inputs, targets)
            times.append(time.perf_counter() - began)
        dist.barrier()
        sent = (own_bytes().sent - before.sent) / steps
        found[name] = {"times": times, "sent": sent}
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()  # who leaves first takes its sockets with it
    dist.destroy_process_group()


def rank_training(store: str, name: str, target: float, limit_s: float) -> None:
    """On every rank: trains until the accuracy is reached; rank 0 prints when that was."""
    join(store)
    rank, size = dist.get_rank(), dist.get_world_size()
    splits = data().load()
    train, test = splits.train.tensors, splits.test.tensors  # type: ignore[attr-defined]
    torch.manual_seed(0)
    averaged = Averaged(
        MLP(splits.input_shape, splits.num_classes, hidden=(512, 512)), COMPRESSORS[name]
    )
    optimizer = torch.optim.SGD(averaged.model.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    spent, reached, accuracy = 0.0, None, 0.0
    for step in itertools.count(1):
        batch = torch.randint(len(train[0]), (size, 64), generator=order)[rank]
        dist.barrier()
        began = time.perf_counter()
        averaged.backward(train[0][batch], train[1][batch])
        optimizer.step()
        spent += time.perf_counter() - began
        if step % 20 == 0:
            with torch.no_grad():
                right = averaged.model(test[0]).argmax(dim=1) == test[1]
            accuracy = right.float().mean().item()
            # Rank 0's clock decides for all.
            over = torch.tensor([accuracy >= target or spent > limit_s])
            dist.broadcast(over, 0)
            if over:
                reached = spent if accuracy >= target else None
                break
    if rank == 0:
        found = {"seconds": reached, "spent": spent, "steps": step, "accuracy": accuracy}
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def data() -> DataSource:
    """MNIST from the folder that PHALANX_DATA names, or digits."""
    path = Path(os.environ.get("PHALANX_DATA", "nowhere")) / "mnist.npz"
    return NpzFile(path) if path.is_file() else Digits()


def on_ranks(cluster: Cluster, *arguments: str) -> Any:
    """What rank 0 of a cluster measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank", f"{folder}/store", *arguments]
        printed = cluster.run(command)
    return json.loads(printed[0].splitlines()[-1])


def step_rows(ranks: int, steps: int) -> list[dict[str, Any]]:
    rows = []
    predictions = predicted(ranks)
    for link, rate in LINKS.items():
        with Cluster(ranks, rate) as cluster:
            few = max(3, steps // 3) if rate == "10mbit" else steps
            found = on_ranks(cluster, "--steps", str(few))
        dense = median(found["DDP"]["times"])
        for way, one in found.items():
            outlook = predictions[way]
            measured = median(one["times"])
            expected = outlook.at(Link(bits_per_second(rate))) if rate is not None else None
            row = {
                "link": link,
                "ranks": ranks,
                "way": way,
                "median_s": measured,
                "times_s": one["times"],
                "speedup": dense / measured,
                "nic_mb": one["sent"] / 1e6,
                "nic_over_wire": one["sent"] / outlook.wire_bytes,
                "predicted_s": expected,
                "predicted_over": expected / measured if expected is not None else None,
                "break_even_mbit": outlook.break_even / 1e6,
            }
            print(" ".join(cell(row[key]).ljust(17) for key in COLUMNS), flush=True)
            rows.append(row)
    return rows


def predicted(ranks: int) -> dict[str, Any]:
    """What the planner makes of the same network, from this process alone."""
    torch.set_num_threads(1)
    inputs = torch.randn(SAMPLES, WIDTH)
    targets = torch.zeros(SAMPLES, dtype=torch.int64)
    compressors = [one for one in COMPRESSORS.values() if one is not None]
    planner = LinkPlanner(num_workers=ranks, compressors=compressors, num_rounds=5)
    outlooks = {one.compressor: one for one in planner.plan(network(), inputs, targets)}
    return {name: outlooks[str(one) if one else "none"] for name, one in COMPRESSORS.items()}


def training_rows(ranks: int, target: float, limit_s: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with Cluster(ranks, "100mbit") as cluster:
        for name in TRAINED:
            options = ["--train", name, "--target", str(target), "--limit_s", str(limit_s)]
            found = on_ranks(cluster, *options)
            row = {"way": name, "ranks": ranks, "target": target, **found}
            dense = (rows or [row])[0]["seconds"]
            both = dense is not None and row["seconds"] is not None
            row["speedup"] = dense / row["seconds"] if both else None
            row["data"] = "digits" if isinstance(data(), Digits) else "MNIST"
            print(" ".join(cell(row[key]).ljust(17) for key in TRAINING_COLUMNS), flush=True)
            rows.append(row)
    return rows


def measure_steps(ranks: int, steps: int, quick: bool) -> None:
    rows = step_rows(ranks, steps)
    remark = (
        f"{RANKS.format(ranks)}; a network of 2.6 M parameters, {SAMPLES} samples each. {STEPS}"
    )
    if not quick:
        write_measurement("slow_links", CLAIM, facts(), rows, COLUMNS, remark)


def measure_training(ranks: int, target: float, limit_s: float, quick: bool) -> None:
    rows = training_rows(ranks, target, limit_s)
    remark = f"{RANKS.format(ranks)} with 100 Mbit/s each way. {TRAINING}"
    if not quick:
        name = "slow_links_training"
        write_measurement(name, TRAINING_CLAIM, facts(), rows, TRAINING_COLUMNS, remark)


def facts() -> dict[str, Any]:
    return environment("phalanx", "torch") | {"threads": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps; nothing is written")
    parser.add_argument("--part", choices=["steps", "training", "all"], default="all")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--limit_s", type=float, default=110.0)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        if options.train is not None:
            rank_training(options.rank, options.train, options.target, options.limit_s)
        else:
            rank_steps(options.rank, options.steps)
        return
    try:
        if options.part in ("steps", "all"):
            measure_steps(options.ranks, 3 if options.quick else options.steps, options.quick)
        if options.part in ("training", "all"):
            measure_training(options.ranks, options.target, options.limit_s, options.quick)
    except UnsupportedError as error:
        print(f"skipped: {error}")


if __name__ == "__main__":
    main()
