"""Rounds of 8 real workers, 2 of them 10 times slower: codes against waiting and ignoring.

    python benchmarks/bench_straggler_rounds.py [--quick]

Goal: exact codes at least 3 times as fast as waiting for all, at the same final loss. Workers sleep
while they read their samples, so that few cores can stand for many machines. Without a code those
that are late may be ignored, which is biased where workers have data of their own.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from torch.utils.data import Dataset

import phalanx
from measurement import cell, write_measurement
from phalanx.aggregation import Mean
from phalanx.attacks import Delay, FixedWorkers
from phalanx.coding import CyclicRepetition, ErasureHead, FractionalRepetition
from phalanx.data import Digits, ShardPartitioner
from phalanx.models import MLP
from phalanx.randomness import seeded
from phalanx.stragglers import UntilDecodable, WaitFor, WaitForAll
from phalanx.training import Ray
from side_by_side import environment

WORKERS, SLOW, SAMPLES = 8, [0, 5], 8  # samples in a partition
PARTITION_S = 0.1  # to compute one; what else a round costs here is 8 processes on few cores
WARM_UP = 3
CLAIM = "Rounds with 2 of 8 workers 10 times slower (goal: exact codes 3 times as fast as waiting)"
COLUMNS = {
    "method": "method",
    "exact": "exact",
    "round_s": "s a round",
    "ratio": "waiting / this",
    "loss": "final test loss",
    "goal": "goal",
    "met": "met",
}
REMARK = (
    "Medians over the rounds of one run each. Partitions take 0.1 s to read; slow workers hold "
    "their message back for 9 times as long as a task without a code. Sorted: every worker has "
    "classes of its own, and no code applies."
)


class Sleepy(Dataset):
    """Data whose samples take their time."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(PARTITION_S / SAMPLES)
        return self.data[index]


METHODS: dict[str, dict[str, Any]] = {
    "waiting for all": {"rule": Mean(), "policy": WaitForAll()},
    "ignoring the late": {"rule": Mean(), "policy": WaitFor(6)},
    "FractionalRepetition, 2 copies": {
        "code": FractionalRepetition(WORKERS, 1),
        "policy": UntilDecodable(),
    },
    "CyclicRepetition, 3 copies": {
        "code": CyclicRepetition(WORKERS, 2),
        "policy": UntilDecodable(),
    },
    "ErasureHead, 2 copies, 4 workers": {
        "code": ErasureHead(WORKERS, copies=2),
        "policy": WaitFor(4),
    },
    "waiting for all, sorted": {
        "rule": Mean(),
        "policy": WaitForAll(),
        "shards": ShardPartitioner(),
    },
    "ignoring the late, sorted": {
        "rule": Mean(),
        "policy": WaitFor(6),
        "shards": ShardPartitioner(),
    },
}


def measure(method: dict[str, Any], steps: int) -> tuple[float, float]:
    """The median seconds of a round, and the final loss on the test set."""
    splits, options = Digits().load(), dict(method)
    engine = Ray(policy=options.pop("policy"))
    with seeded(0, "weights"):
        model = MLP(splits.input_shape, splits.num_classes)
    run = phalanx.train(
        model,
        Sleepy(splits.train),
        num_workers=WORKERS,
        attack=Delay(9 * PARTITION_S),
        byzantine=FixedWorkers(SLOW),
        engine=engine,
        steps=steps,
        batch_size=SAMPLES * WORKERS,
        evaluate_every=steps,
        test=splits.test,
        **options,
    )
    seconds = [entry["compute_seconds"] for entry in run.rounds[WARM_UP:]]
    return statistics.median(seconds), run.result["test_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, method in METHODS.items():
        round_s, loss = measure(method, 12 if options.quick else 60)
        waiting = next((row for row in rows if row["method"] == "waiting for all"), None)
        ratio = waiting["round_s"] / round_s if waiting else 1.0
        exact = isinstance(method.get("code"), FractionalRepetition | CyclicRepetition)
        same = waiting is not None and abs(loss - waiting["loss"]) <= 1e-3 * waiting["loss"]
        rows.append(
            {
                "method": name,
                "exact": exact or name.startswith("waiting"),
                "round_s": round_s,
                "ratio": ratio,
                "loss": loss,
                "goal": 3.0 if exact else None,
                "met": ratio >= 3 and same if exact else None,
            }
        )
        print(" ".join(cell(rows[-1][key]).ljust(12) for key in COLUMNS), flush=True)
    if not options.quick:
        facts = environment("phalanx", "torch", "ray") | {"threads": 1}
        write_measurement("straggler_rounds", CLAIM, facts, rows, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
