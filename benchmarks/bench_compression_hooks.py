"""PowerSGD under DDP: `phalanx.ddp.compress` and torch's own hook, beyond what a step computes.

    python benchmarks/bench_compression_hooks.py [--quick]

Two processes on one machine, with gloo over the loopback device. The model has the parameters of
ResNet-18 and a loss that reads each of them once, so that a step is little more than what becomes
of the gradients. Torch's hook gets one bucket for all: with more of them it hangs or ends the
process on gloo, as its collectives have no common order.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from measurement import write_measurement
from phalanx.compression import ErrorFeedback, PowerSGD
from phalanx.ddp import compress
from phalanx.models import ResNet18
from side_by_side import environment, side_by_side

CLAIM = "PowerSGD under DDP against torch's hook, on the parameters of ResNet-18"
NUM_RANKS = 2
GOAL = 2.0
COLUMNS = {
    "rank": "rank of the factors",
    "way": "way",
    "median_s": "s a step",
    "beyond_s": "beyond computing, s",
    "ratio": "torch's hook / this, beyond computing",
    "target": "goal: at least",
    "met": "met",
}
REMARK = (
    "Two processes on one machine, one thread each, gloo over loopback, 11.2 M float32 parameters "
    "in one bucket for torch's hook, DDP's default of 25 MB for ours. Medians over rounds; what "
    "lies beyond computing is the step without a hook's work in it, which a hook that leaves "
    "gradients as they are takes in the same round, subtracted. On loopback DDP's own all-reduce "
    "is in the table too: compression is for slower links than this."
)


class Weights(nn.Module):
    """The parameters of ResNet-18, each of which is multiplied by something and summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ResNet18((3, 32, 32), 10)
        source = torch.Generator().manual_seed(dist.get_rank())
        self.factors = [torch.randn(p.shape, generator=source) for p in self.inner.parameters()]

    def forward(self, scale: Tensor) -> Tensor:
        """A number whose gradient by a parameter is what it was multiplied by, times the scale."""
        parameters = zip(self.inner.parameters(), self.factors, strict=True)
        return scale * sum(torch.dot(p.flatten(), f.flatten()) for p, f in parameters)


def leave(
    state: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> Future[Tensor]:
    """A hook that sends nothing."""
    future: Future[Tensor] = Future()
    future.set_result(bucket.buffer())
    return future


def stepper(
    install: Callable[[DistributedDataParallel], object], bucket_cap_mb: float = 25
) -> Callable[[], None]:
    model = DistributedDataParallel(
        Weights(), bucket_cap_mb=bucket_cap_mb, gradient_as_bucket_view=True
    )
    install(model)
    scale = torch.ones(())

    def step() -> None:
        model.zero_grad()
        model(scale).backward()
        dist.barrier()

    for _ in range(3):  # torch's hook starts in the third
        step()
    return step


def theirs(rank: int) -> Callable[[DistributedDataParallel], object]:
    def install(model: DistributedDataParallel) -> None:
        state = powerSGD_hook.PowerSGDState(
            None,
            matrix_approximation_rank=rank,
            start_powerSGD_iter=2,
            orthogonalization_epsilon=1e-8,
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    return install


def ours(rank: int) -> Callable[[DistributedDataParallel], object]:
    return lambda model: compress(model, ErrorFeedback(PowerSGD(rank)))


def rows_of(rank: int, rounds: int) -> list[dict[str, Any]]:
    ways = {
        "nothing sent": stepper(lambda model: model.register_comm_hook(None, leave)),
        "DDP's all-reduce": stepper(lambda model: None),
        "torch's hook": stepper(theirs(rank), bucket_cap_mb=100),
        "phalanx.ddp": stepper(ours(rank)),
    }
    timings = side_by_side(ways, "nothing sent", rounds)
    computing = timings["nothing sent"].median_s
    beyond = {way: timing.median_s - computing for way, timing in timings.items()}
    rows = []
    for way, timing in timings.items():
        ratio = None if way == "nothing sent" else beyond["torch's hook"] / beyond[way]
        rows.append(
            {
                "rank": rank,
                "way": way,
                "median_s": timing.median_s,
                "quartiles_s": timing.quartiles_s,
                "beyond_s": beyond[way],
                "ratio": ratio,
                "target": GOAL if way == "phalanx.ddp" else None,
                "met": ratio >= GOAL if way == "phalanx.ddp" and ratio else None,
            }
        )
    return rows


def run_rank(rank: int, rounds: int, store: str, end: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=NUM_RANKS)
    found = [row for factors in (1, 2, 4) for row in rows_of(factors, rounds)]
    if rank == 0:
        end.send(found)
    dist.barrier()
    dist.destroy_process_group()


def measured(rounds: int) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    mine, far = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=run_rank, args=(rank, rounds, f"{folder}/store", far), daemon=True
            )
            for rank in range(NUM_RANKS)
        ]
        for process in processes:
            process.start()
        while not mine.poll(1.0):
            if any(process.exitcode for process in processes):
                raise SystemExit("a rank failed")
        found: list[dict[str, Any]] = mine.recv()
        for process in processes:
            process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing is written")
    options = parser.parse_args()
    rows = measured(5 if options.quick else 31)
    for row in rows:
        ratio = "" if row["ratio"] is None else f"; torch's / this {row['ratio']:5.2f}"
        print(
            f"rank {row['rank']}  {row['way']:18} {1e3 * row['median_s']:7.1f} ms a step, "
            f"{1e3 * row['beyond_s']:7.1f} ms beyond computing{ratio}",
            flush=True,
        )
    if not options.quick:
        facts = environment("phalanx", "torch") | {"threads": 1}
        write_measurement("compression_hooks", CLAIM, facts, rows, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
