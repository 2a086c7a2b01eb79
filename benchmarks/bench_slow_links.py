"""Compressors on slow links: real gloo ranks, each behind a link of its own.

    python benchmarks/bench_slow_links.py [--quick] [--part steps|training|all]
    python benchmarks/bench_slow_links.py --part steps --links "10 Mbit/s" --ways DDP "top-k 1 %"

As root on Linux, with iproute2: every rank has a network namespace with a link of its own
(`phalanx.communication.EmulatedLinks`). Elsewhere it says so and writes nothing. Links and ways
that are left out keep the rows that they have: the whole takes minutes, and can be had in pieces.

Steps: a network of 2.6 M parameters, few samples, so that links decide; DDP's own all-reduce and
`phalanx.ddp.compress`, by the clock and by the bytes that the interface counted, headers included.
Beside them what the planner predicts on the ranks themselves, and what `probe_link` finds there.
Training: MNIST (or digits) until a test accuracy is reached.
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
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from measurement import FOLDER, cell, write_measurement
from phalanx.communication import EmulatedLinks, Link, probe_link
from phalanx.communication.slow_links import own_bytes
from phalanx.compression import (
    Compressor,
    ErrorFeedback,
    HalfPrecision,
    PowerSGD,
    RandomBlock,
    ScaledSign,
    TopK,
)
from phalanx.data import DataSource, Digits, NpzFile
from phalanx.ddp import compress
from phalanx.errors import EmulationError
from phalanx.models import MLP
from phalanx.planning import CompressorPlanner
from side_by_side import environment

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
LINKS: dict[str, dict[str, str | None]] = {
    "no limit": {"bandwidth": None},
    "1 Gbit/s": {"bandwidth": "1gbit"},
    "100 Mbit/s": {"bandwidth": "100mbit"},
    "100 Mbit/s, 20 ms": {"bandwidth": "100mbit", "latency": "20ms"},
    "10 Mbit/s": {"bandwidth": "10mbit"},
}
"""By name; of `EmulatedLinks`."""
# What is freed is kept for the next step. By default glibc may give it back to the kernel in each
# step and get it page by page in the next, or not, as memory happens to lie.
ALLOCATION = ("MALLOC_TRIM_THRESHOLD_=1000000000", "MALLOC_MMAP_THRESHOLD_=1000000000")
CASES = [(link, 2) for link in LINKS] + [("1 Gbit/s", 4), ("100 Mbit/s", 4)]
WIDTH, DEPTH, SAMPLES = 800, 4, 16  # 2.6 M parameters
STEPS = (
    "Gloo ranks on one machine with two cores, each in a network namespace and, of two, on a core "
    f"of its own; a network of 2.6 M parameters, {SAMPLES} samples each. Bytes are those that a "
    "rank's interface sent, headers included; the model is the planner's count without headers. "
    "Predictions are those of the planner, which timed the gradient and the compressors on all "
    "ranks at once, for the link as it was made, and as it was probed where nothing was set. DDP "
    "sends while it computes. glibc is told to keep memory that was freed, for all ways alike."
)
PROBE_CLAIM = "Links, and what probing them finds"
PROBE = "By `phalanx.communication.probe_link`: gloo ranks in network namespaces on one machine."
PROBE_COLUMNS = {
    "link": "link",
    "ranks": "ranks",
    "probed_mbit": "Mbit/s found",
    "probed_ms": "latency found, ms",
}
RANKS = "{} gloo ranks on one machine, each in a network namespace"
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
    "ranks": "ranks",
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


def wrapped(model: nn.Module, compressor: Compressor | None) -> DistributedDataParallel:
    """A model whose gradients are averaged by DDP, compressed or not."""
    model = DistributedDataParallel(model)
    if compressor is not None:
        compress(model, compressor)
    return model


def join(store: str) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    # A core each, as on machines of their own.
    os.sched_setaffinity(0, {rank % (os.cpu_count() or 1)})
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=datetime.timedelta(seconds=120),
    )


def rank_steps(store: str, ways: list[str], steps: int, rate: float | None, delay_s: float) -> None:
    """On every rank: a prediction, seconds and bytes of steps of every way; rank 0 prints them."""
    join(store)
    slow = rate is not None and rate < 5e7
    probed = probe_link(num_rounds=3, num_bytes=1_000_000 if slow else 4_000_000)
    link = Link(rate or probed.rate, delay_s or probed.latency_s)
    inputs = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(dist.get_rank()))
    targets = torch.zeros(SAMPLES, dtype=torch.int64)
    compressors = [one for way in ways if (one := COMPRESSORS[way]) is not None]
    planner = CompressorPlanner(link, dist.get_world_size(), compressors, num_rounds=9)
    outlooks = {one.compressor: one for one in planner.plan(network(), inputs, targets)}
    found = {}
    for way in ways:
        model = wrapped(network(), COMPRESSORS[way])
        times = []
        for step in range(2 + steps):  # DDP cuts its buckets anew after the first
            if step == 2:
                dist.barrier()
                before = own_bytes()
            began = time.perf_counter()
            model.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            times.append(time.perf_counter() - began)
        dist.barrier()
        outlook = outlooks[str(COMPRESSORS[way] or "none")]
        found[way] = {
            "times_s": times[2:],
            "nic_mb": (own_bytes().sent - before.sent) / steps / 1e6,
            "wire_mb": outlook.wire_bytes / 1e6,
            "own_s": outlook.own_s,
            "predicted_s": outlook.step_s,
            "break_even_mbit": outlook.break_even / 1e6,
        }
    if dist.get_rank() == 0:
        probe = {"probed_mbit": probed.rate / 1e6, "probed_ms": 1e3 * probed.latency_s}
        print(json.dumps([probe, found]), flush=True)
    dist.barrier()  # who leaves first takes its sockets with it
    dist.destroy_process_group()


def rank_training(store: str, name: str, target: float, limit_s: float) -> None:
    """On every rank: trains until the accuracy is reached; rank 0 prints when that was."""
    join(store)
    rank, size = dist.get_rank(), dist.get_world_size()
    splits = data().load()
    train, test = splits.train.tensors, splits.test.tensors  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = wrapped(
        MLP(splits.input_shape, splits.num_classes, hidden=(512, 512)), COMPRESSORS[name]
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    spent, reached, accuracy = 0.0, None, 0.0
    for step in itertools.count(1):
        batch = torch.randint(len(train[0]), (size, 64), generator=order)[rank]
        dist.barrier()
        began = time.perf_counter()
        model.zero_grad()
        cross_entropy(model(train[0][batch]), train[1][batch]).backward()
        optimizer.step()
        spent += time.perf_counter() - began
        if step % 20 == 0:
            with torch.no_grad():
                right = model.module(test[0]).argmax(dim=1) == test[1]
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


def on_ranks(cluster: EmulatedLinks, *arguments: str) -> Any:
    """What rank 0 of a cluster measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--store", f"{folder}/store", *arguments]
        printed = cluster.run(["env", *ALLOCATION, *command])
    return json.loads(printed[0].splitlines()[-1])


def measure_steps(links: list[str], ways: list[str], steps: int, quick: bool) -> None:
    probes, rows = kept("slow_links_probe"), kept("slow_links")
    for link, ranks in CASES:
        if link not in links:
            continue
        with EmulatedLinks(ranks, **LINKS[link]) as cluster:
            few = 3 if link == "10 Mbit/s" else steps
            asked = ["--steps", str(few), "--ways", *ways]
            if cluster.bandwidth is not None:
                asked += ["--rate", str(cluster.bandwidth)]
            asked += ["--delay_s", str(cluster.latency_s)]
            probe, found = on_ranks(cluster, *asked)
        probes[link, ranks, ""] = {"link": link, "ranks": ranks, **probe}
        for way, one in found.items():
            rows[link, ranks, way] = {"link": link, "ranks": ranks, "way": way, **one}
            complete(rows, link, ranks, way)
            shown = rows[link, ranks, way]
            print(" ".join(cell(shown[key]).ljust(17) for key in COLUMNS), flush=True)
        if not quick:
            write_measurement(
                "slow_links_probe", PROBE_CLAIM, facts(), ordered(probes), PROBE_COLUMNS, PROBE
            )
            write_measurement("slow_links", CLAIM, facts(), ordered(rows), COLUMNS, STEPS)


def kept(name: str) -> dict[tuple[str, int, str], dict[str, Any]]:
    """The rows of a measurement that was written before."""
    path = FOLDER / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return {(row["link"], row["ranks"], row.get("way", "")): row for row in rows}


def complete(
    rows: dict[tuple[str, int, str], dict[str, Any]], link: str, ranks: int, way: str
) -> None:
    """Adds to a row what compares it with others, and its parts with each other."""
    row = rows[link, ranks, way]
    row["median_s"] = median(row["times_s"])
    dense = rows.get((link, ranks, "DDP"))
    row["speedup"] = median(dense["times_s"]) / row["median_s"] if dense else None
    row["nic_over_wire"] = row["nic_mb"] / row["wire_mb"]
    row["predicted_over"] = row["predicted_s"] / row["median_s"]


def ordered(rows: dict[tuple[str, int, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """By ranks, links and ways, as they are listed above."""
    ways = ["", *COMPRESSORS]
    places = [(link, ranks, way) for link, ranks in CASES for way in ways]
    return [rows[place] for place in places if place in rows]


def training_rows(ranks: int, target: float, limit_s: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with EmulatedLinks(ranks, "100mbit") as cluster:
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
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--ways", nargs="+", choices=COMPRESSORS, default=list(COMPRESSORS))
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--limit_s", type=float, default=110.0)
    parser.add_argument("--store", help=argparse.SUPPRESS)  # this is a rank, then
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--delay_s", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.store is not None:
        if options.train is not None:
            rank_training(options.store, options.train, options.target, options.limit_s)
        else:
            link = options.rate, options.delay_s
            rank_steps(options.store, options.ways, options.steps, *link)
        return
    try:
        if options.part in ("steps", "all"):
            steps = 3 if options.quick else options.steps
            measure_steps(options.links, options.ways, steps, options.quick)
        if options.part in ("training", "all"):
            measure_training(2, options.target, options.limit_s, options.quick)
    except EmulationError as error:
        print(f"skipped: {error}")


if __name__ == "__main__":
    main()
