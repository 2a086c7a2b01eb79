"""Gossip against Choco and all-reduce: how fast nodes agree, for how many bytes, in what time.

    python benchmarks/bench_gossip.py [--quick] [--threads 1] [--part "8 white noise"]

Five parts. All nodes in one process: rounds of 8 and of 64 nodes, on white noise and on matrices
whose differences have spectra that decay; the time of a round is compared with that of an
uncompressed one. Real processes on one machine, with gloo over the loopback device: rounds of 4
ranks, beside the all-reduce of torch.distributed. Bytes are those of the messages, to the byte.
With `--part`, rows of the other parts stay as they were measured before.
"""

import argparse
import json
import math
import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from measurement import FOLDER, cell, write_measurement
from phalanx.compression import TensorStates, TopK
from phalanx.gossip import (
    DPSGD,
    AllReduceAveraging,
    ChocoSGD,
    Consensus,
    Gossip,
    Moniqua,
    Network,
    PowerGossip,
    ProcessNetwork,
    SimulatedNetwork,
    Topology,
    average,
    mix,
)
from phalanx.randomness import generator
from side_by_side import Timing, environment, side_by_side

CLAIM = "Gossip: how fast nodes agree, for how many bytes, in what time"
COLUMNS = {
    "nodes": "nodes",
    "values": "values",
    "algorithm": "algorithm",
    "bytes_a_round": "bytes a round",
    "left": "distance left after 300 rounds",
    "kb_to_1_percent": "kB until 1 % is left",
    "rounds_a_second": "rounds a second",
    "ratio": "time / uncompressed",
}
REMARK = (
    "A matrix of 128 x 128 at every node of a ring (8 nodes) or torus (64 nodes); relative squared "
    "distance to the mean; bytes and kB are what a node sends to all its neighbours. Consensus "
    "rates are those that take the fewest bytes to 1 %: of 0.05, 0.1, 0.2, 0.4 for Choco with "
    "signs, of 0.01, 0.03, 0.1 with the top 1 %, and of 1, 0.3, 0.1 for Moniqua, whose bound is "
    "the largest difference between any two nodes at the start. Rows of processes: 4 ranks on a "
    "ring over the loopback device, one thread each, a matrix of 1024 x 1024. An all-reduce agrees "
    "in one round."
)
PARTS = (
    "8 white noise",
    "8 decaying spectra",
    "64 white noise",
    "64 decaying spectra",
    "4 processes",
)
PLAIN = "D-PSGD"
ROUNDS = 300


def noise(nodes: int, size: int) -> Tensor:
    """Gaussian matrices."""
    return torch.randn(nodes, size, size, generator=generator(0, "noise"))


def decaying(nodes: int, size: int) -> Tensor:
    """Random matrices with singular values of about 1 / k^1.5, as models' differences have."""
    basis = torch.linalg.qr(noise(2 * nodes, size)).Q
    values = torch.arange(1, size + 1).pow(-1.5)
    return (basis[:nodes] * values) @ basis[nodes:].mT


def candidates(bound: float) -> dict[str, list[Gossip]]:
    """Each way, with the rates that are tried of it; no values differ by more than the bound."""
    return {
        "all-reduce": [AllReduceAveraging()],
        PLAIN: [DPSGD()],
        "PowerGossip, rank 1": [PowerGossip()],
        "PowerGossip, rank 2": [PowerGossip(rank=2)],
        "PowerGossip, rank 1, optimal diffusion": [PowerGossip(diffusion="optimal")],
        "PowerGossip, rank 1, signs": [PowerGossip(signs=True)],
        **{
            f"Moniqua, {bits} bits": [
                Moniqua(bound, bits, consensus_rate=one) for one in (1.0, 0.3, 0.1)
            ]
            for bits in (8, 4)
        },
        "Choco, signs": [ChocoSGD(consensus_rate=one) for one in (0.05, 0.1, 0.2, 0.4)],
        "Choco, top 1 %": [ChocoSGD(TopK(0.01), one) for one in (0.01, 0.03, 0.1)],
    }


def stepper(algorithm: Gossip, network: Network, value: Tensor) -> Callable[[], None]:
    """One round after the other."""
    state: dict[str, Any] = {"value": value, "memory": TensorStates()}

    def step() -> None:
        mixed = mix(algorithm, network, {"x": state["value"]}, state["memory"])
        state["value"], state["memory"] = mixed.values["x"], mixed.memory

    return step


def simulated(nodes: int, what: str, quick: bool) -> list[dict[str, Any]]:
    """Rows of all nodes in one process."""
    topology = Topology.ring(nodes) if nodes < 16 else Topology.torus(8, nodes // 8)
    value = {"white noise": noise, "decaying spectra": decaying}[what](nodes, 128)
    rounds = ROUNDS // 10 if quick else ROUNDS
    bound = 1.01 * (value.amax(dim=0) - value.amin(dim=0)).max().item()
    best = {}
    for name, tried in candidates(bound).items():
        found = [
            (one, average(value, one, SimulatedNetwork(topology), rounds=rounds)) for one in tried
        ]
        best[name] = min(found, key=lambda pair: (kilobytes(pair[1]), pair[1].distances[-1]))
    steps = {
        name: stepper(algorithm, SimulatedNetwork(topology), value)
        for name, (algorithm, _) in best.items()
    }
    timings = side_by_side(steps, PLAIN, 5 if quick else 21, 3)
    rows = []
    for name, (_, found) in best.items():
        sent = found.bytes_sent[0].item() / (len(found.distances) - 1)
        rows.append(
            {
                "nodes": nodes,
                "values": what,
                "algorithm": name,
                "bytes_a_round": round(sent),
                "left": found.distances[-1],
                "kb_to_1_percent": None if math.isinf(kilobytes(found)) else kilobytes(found),
            }
            | speed(timings[name])
        )
    return rows


def kilobytes(found: Consensus) -> float:
    """What a node had sent when 1 % was left; infinity if more was left in the end."""
    sent = found.bytes_sent[0].item() / (len(found.distances) - 1)
    reached = (step for step, left in enumerate(found.distances) if left <= 0.01)
    return sent * next(reached, math.inf) / 1000


def speed(timing: Timing) -> dict[str, Any]:
    return {
        "rounds_a_second": 1 / timing.median_s,
        "median_s": timing.median_s,
        "ratio": timing.ratio,
        "ratio_quartiles": timing.ratio_quartiles,
    }


def run_rank(rank: int, ranks: int, threads: int, rounds: int, store: str, end: Connection) -> None:
    """A rank's share of the real rounds."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    topology = Topology.ring(ranks)
    value = torch.randn(1, 1024, 1024, generator=generator(rank, "value"))
    tried = {name: found[-1] for name, found in candidates(bound=12.0).items()}
    networks = {name: ProcessNetwork(topology) for name in tried}
    steps = {name: stepper(one, networks[name], value) for name, one in tried.items()}
    timings = side_by_side(steps, PLAIN, rounds, 2)
    sent = {name: one.bytes_sent.item() / (rounds + 2) for name, one in networks.items()}
    if rank == 0:
        end.send((timings, sent))
    dist.barrier()
    dist.destroy_process_group()


def processes(ranks: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of real processes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(
                target=run_rank,
                args=(rank, ranks, threads, rounds, f"{folder}/store", theirs),
                daemon=True,
            )
            for rank in range(ranks)
        ]
        for process in started:
            process.start()
        while not ours.poll(1.0):
            if any(process.exitcode for process in started):
                raise SystemExit("a rank failed")
        timings, sent = ours.recv()
        for process in started:
            process.join()
    return [
        {
            "nodes": f"{ranks} processes",
            "values": "1024 x 1024",
            "algorithm": name,
            "bytes_a_round": round(sent[name]),
            "left": None,
            "kb_to_1_percent": None,
        }
        | speed(timing)
        for name, timing in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of it; nothing is written")
    parser.add_argument("--threads", type=int, default=1, help="that torch uses")
    parser.add_argument("--part", choices=PARTS, help="only this one; by default all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {part: measured(part, options) for part in ([options.part] if options.part else PARTS)}
    if not options.quick:
        facts = environment("phalanx", "torch") | {"threads": torch.get_num_threads()}
        rows = [row for part in PARTS for row in found.get(part) or kept(part)]
        write_measurement("gossip", CLAIM, facts, rows, COLUMNS, REMARK)


def measured(part: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a part, printed as they come."""
    number, _, what = part.partition(" ")
    if what == "processes":
        return shown(processes(int(number), options.threads, 3 if options.quick else 21))
    return shown(simulated(int(number), what, options.quick))


def kept(part: str) -> list[dict[str, Any]]:
    """The rows of a part as they were measured before."""
    rows: list[dict[str, Any]] = json.loads((FOLDER / "gossip.json").read_text())["rows"]
    return [row for row in rows if f"{row['nodes']} {row['values']}".startswith(part)]


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints them."""
    for row in rows:
        print(" | ".join(cell(row[key]) for key in COLUMNS), flush=True)
    return rows


if __name__ == "__main__":
    main()
