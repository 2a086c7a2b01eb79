"""Robust all-reduce under DDP against DDP's own, and against gathering everything everywhere.

    python benchmarks/bench_ddp.py [--quick] [--ranks 4] [--threads 1]

Real processes on one machine, with gloo over the loopback device. Every contestant takes the same
step: a forward and a backward pass of a network with few samples, so that what is measured is what
becomes of the gradients. The bytes are those that the loopback device counted, headers included.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from measurement import write_measurement
from phalanx.aggregation import Aggregator, CenteredClipping, CoordinateMedian, Krum
from phalanx.ddp import aggregate
from side_by_side import Timing, environment, side_by_side

CLAIM = "A robust rule under DDP: the traffic of its own all-reduce, in about twice the time"
RULES = {
    "Krum": Krum(num_byzantine=1),
    "median": CoordinateMedian(),
    "centred clipping": CenteredClipping(),
    "centred clipping, 2 steps": CenteredClipping(iterations=2),
}
WIDTH, DEPTH = 1024, 10  # 10.5 M parameters


class Gathered:
    """What users do without this library: everybody gathers all gradients, and runs the rule."""

    def __init__(self, rule: Aggregator) -> None:
        self.rule = rule
        self.rows = torch.empty(dist.get_world_size(), DEPTH * (WIDTH + 1) * WIDTH)
        self.state = rule.init(self.rows.shape[1])
        self.buckets: list[tuple[Tensor, Any, Future[Tensor]]] = []

    def take(
        self,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> Future[Tensor]:
        """Gathers a bucket of all ranks, and in the end aggregates."""
        flat, future = bucket.buffer(), Future[Tensor]()
        start = sum(len(other) for other, *_ in self.buckets)
        places = list(self.rows[:, start : start + len(flat)])
        self.buckets.append((flat, dist.all_gather(places, flat, async_op=True), future))
        if bucket.is_last():
            self.finish()
        return future

    def finish(self) -> None:
        """Runs the rule on the whole of all gradients."""
        for _, work, _ in self.buckets:
            work.wait()
        answer, self.state = self.rule.update(self.rows, self.state)
        parts = answer.value.split([len(flat) for flat, *_ in self.buckets])
        for (flat, _, future), part in zip(self.buckets, parts, strict=True):
            future.set_result(flat.copy_(part))
        self.buckets = []


def take(
    state: Gathered,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> Future[Tensor]:
    return state.take(bucket)


def stepper(install: Callable[[DistributedDataParallel], Any]) -> Callable[[], None]:
    """One training step of a model of its own, whose gradients go the way that is installed."""
    layers = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = DistributedDataParallel(nn.Sequential(*layers), gradient_as_bucket_view=True)
    install(model)
    inputs = torch.randn(4, WIDTH)

    def step() -> None:
        model.zero_grad()
        model(inputs).square().mean().backward()
        dist.barrier()

    return step


def contestants(rule: Aggregator) -> dict[str, Callable[[], None]]:
    return {
        "DDP's all-reduce": stepper(lambda model: None),
        "gathered everywhere": stepper(
            lambda model: model.register_comm_hook(Gathered(rule), take)
        ),
        "phalanx.ddp": stepper(lambda model: aggregate(model, rule)),
    }


def bytes_sent(step: Callable[[], None], num_ranks: int) -> float:
    """What a rank sent in one step, by the loopback device's count."""
    dist.barrier()
    before = _loopback()
    dist.barrier()
    step()
    dist.barrier()
    return (_loopback() - before) / num_ranks


def _loopback() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[9])
    raise SystemExit("there is no loopback device to count bytes on")


def run_rank(
    rank: int, num_ranks: int, threads: int, rounds: int, store: str, end: Connection
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    found = {}
    for name, rule in RULES.items():
        ways = contestants(rule)
        timings = side_by_side(ways, "DDP's all-reduce", rounds)
        found[name] = timings, {way: bytes_sent(step, num_ranks) for way, step in ways.items()}
        del ways
    if rank == 0:
        end.send(found)
    dist.barrier()
    dist.destroy_process_group()


def measured(num_ranks: int, threads: int, rounds: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=run_rank,
                args=(rank, num_ranks, threads, rounds, f"{folder}/store", theirs),
                daemon=True,
            )
            for rank in range(num_ranks)
        ]
        for process in processes:
            process.start()
        while not ours.poll(1.0):
            if any(process.exitcode for process in processes):
                raise SystemExit("a rank failed")
        found = ours.recv()
        for process in processes:
            process.join()
    return found


def rows_of(name: str, timings: dict[str, Timing], sent: dict[str, float], ranks: int) -> list[Any]:
    gathered = timings["gathered everywhere"].median_s
    return [
        {
            "rule": name,
            "ranks": ranks,
            "parameters": DEPTH * (WIDTH + 1) * WIDTH,
            "way": way,
            "median_s": timing.median_s,
            "quartiles_s": timing.quartiles_s,
            "ratio": timing.ratio,
            "ratio_quartiles": timing.ratio_quartiles,
            "ratio_gathered": gathered / timing.median_s,
            "sent_mb": sent[way] / 1e6,
            "ratio_sent": sent[way] / sent["DDP's all-reduce"],
        }
        for way, timing in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing is written")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found = measured(options.ranks, options.threads, 5 if options.quick else 15)
    rows = [row for name, one in found.items() for row in rows_of(name, *one, options.ranks)]
    for row in rows:
        print(
            f"{row['rule']:26} {row['way']:20} {1e3 * row['median_s']:8.1f} ms"
            f"  x {row['ratio']:5.2f} of DDP's; gathered / this {row['ratio_gathered']:5.2f};"
            f"  sent {row['sent_mb']:7.1f} MB a rank, x {row['ratio_sent']:5.2f}",
            flush=True,
        )
    if not options.quick:
        env = environment("phalanx", "torch") | {"threads": options.threads}
        columns = {
            "rule": "rule",
            "way": "way",
            "median_s": "s a step",
            "ratio": "/ DDP's all-reduce",
            "ratio_gathered": "gathered / this",
            "sent_mb": "MB sent a rank",
            "ratio_sent": "/ DDP's bytes",
        }
        remark = (
            f"{options.ranks} processes on one machine, gloo over loopback, "
            f"{DEPTH * (WIDTH + 1) * WIDTH / 1e6:.1f} M float32 parameters; a step is a forward "
            "and backward pass with 4 samples and what becomes of the gradients. On a network the "
            "bytes decide; here the cores do, which all processes share. Bytes by the loopback "
            "device's count, headers included."
        )
        write_measurement("ddp", CLAIM, env, rows, columns, remark)


if __name__ == "__main__":
    main()
