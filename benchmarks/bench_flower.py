"""Seconds of a federation in one process, over the in-process grid, and in Flower's simulation.

    python benchmarks/bench_flower.py [--quick]

All three run the same algorithm on the same clients, and end with the same accuracy. Flower's
simulation starts Ray, and calls the client app in its actors.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import phalanx
from measurement import write_measurement
from phalanx.aggregation import CoordinateMedian
from phalanx.data import Digits, DirichletPartitioner
from phalanx.federated import FedAvg, deal
from phalanx.models import MLP
from phalanx.training import Callback, Run
from side_by_side import environment

CLAIM = "Federations: one process against Flower's simulation"
COLUMNS = {
    "how": "how",
    "seconds": "s",
    "per_round": "s a round",
    "ratio": "ratio to Flower's simulation",
    "accuracy": "test accuracy",
}
NUM_CLIENTS, RULE = 6, CoordinateMedian(2)


class Keep(Callback):
    """Keeps the run, and when its first round was over."""

    def on_start(self, run: Run) -> None:
        """The clock starts."""
        self.times = [time.perf_counter()]

    def on_round(self, run: Run, entry: dict[str, Any]) -> None:
        """A round is over."""
        self.times.append(time.perf_counter())

    def on_end(self, run: Run) -> None:
        """The run is kept."""
        self.run = run


def ways(rounds: int) -> dict[str, Callable[[Keep], None]]:
    """What is timed, by name."""
    from flwr.simulation import run_simulation

    from phalanx.federated.flower import as_flower, run_in_process

    splits = Digits().load()
    clients = deal(splits.train, DirichletPartitioner(alpha=1.0), NUM_CLIENTS)
    algorithm = FedAvg(lr=0.1, batch_size=32)

    def model() -> torch.nn.Module:
        return MLP(splits.input_shape, splits.num_classes)

    def apps(kept: Keep) -> tuple[Any, Any]:
        return as_flower(
            algorithm,
            model,
            lambda client: clients[client],
            num_clients=len(clients),
            rounds=rounds,
            rule=RULE,
            test_fn=lambda: splits.test,
            poll_s=0.05,
            callbacks=[kept],
        )

    def one_process(kept: Keep) -> None:
        given = {"rule": RULE, "test": splits.test, "callbacks": [kept], "progress": False}
        phalanx.federate(model, clients, algorithm, rounds=rounds, **given)

    def simulation(kept: Keep) -> None:
        server, client = apps(kept)
        run_simulation(server, client, len(clients))

    return {
        "phalanx.federate": one_process,
        "in-process grid": lambda kept: run_in_process(*apps(kept), len(clients)),
        "Flower's simulation (Ray)": simulation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="writes nothing")
    quick = parser.parse_args().quick
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    torch.set_num_threads(1)
    rounds, rows = 3 if quick else 20, []
    for how, run in ways(rounds).items():
        kept, began = Keep(), time.perf_counter()
        run(kept)
        seconds = time.perf_counter() - began
        steps = [later - one for one, later in zip(kept.times, kept.times[1:], strict=False)]
        accuracy = kept.run.result["test_accuracy"]
        per_round = statistics.median(steps)
        rows.append({"how": how, "seconds": seconds, "per_round": per_round, "accuracy": accuracy})
        print(rows[-1], flush=True)
    for row in rows:
        row["ratio"] = row["seconds"] / rows[-1]["seconds"]
    if not quick:
        remark = (
            f"{NUM_CLIENTS} clients of scikit-learn's digits, {rounds} rounds of FedAvg, "
            f"{RULE}. Seconds are of the whole run, Ray's start among them, without imports; other"
            " programs ran beside it."
        )
        where = {**environment("torch", "flwr", "ray"), "threads": 1}
        write_measurement("flower", CLAIM, where, rows, COLUMNS, remark)


if __name__ == "__main__":
    main()
