"""Rounds a second: `phalanx.train` on the local engine against the peer's own training loop.

    python benchmarks/bench_local_engine.py [--quick] [--threads 1]

Both sides train the peer's model on the same samples, in memory, with as many workers and as many
samples a worker, through their geometric median. The peer's bad workers compute nothing, ours do;
ours also writes down each round's verdict, in memory. Neither evaluates.
"""

import argparse
import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import phalanx
from measurement import write_measurement
from peer import Federation, load_byzfl
from phalanx.aggregation import GeometricMedian
from phalanx.attacks import FixedWorkers, SignFlip
from side_by_side import environment, side_by_side

CLAIM = "Rounds a second on the local engine, against the peer's own loop (goal: 5 times as many)"
TARGET = 5.0
SAMPLES = 25  # a worker and round, the peer's default
CASES = [  # the peer's model, workers, liars, rounds a call
    ("logreg_mnist", 10, 2, 150),
    ("fc_mnist", 10, 2, 150),
    ("fc_mnist", 15, 3, 150),
    ("cnn_mnist", 10, 2, 2),
]


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7500, 1, 28, 28, generator=generator)
    return TensorDataset(inputs, torch.randint(10, (7500,), generator=generator))


def peer_loop(
    peer: Any, model: str, dataset: TensorDataset, num_workers: int, num_byzantine: int
) -> Callable[[int], None]:
    """Distributed SGD against sign flipping, through the peer's geometric median."""
    federation = Federation(
        peer,
        model,
        dataset,
        num_workers,
        num_byzantine,
        samples=SAMPLES,
        learning_rate=0.01,
        aggregator={"name": "GeometricMedian", "parameters": {"nu": 0.1, "T": 3}},
        attack={"name": "SignFlipping", "f": num_byzantine, "parameters": {}},
    )
    return federation.rounds


def our_loop(
    model: nn.Module, dataset: TensorDataset, num_workers: int, num_byzantine: int
) -> Callable[[int], None]:
    def rounds(number: int) -> None:
        phalanx.train(
            copy.deepcopy(model),
            dataset,
            rule=GeometricMedian(num_byzantine),
            num_workers=num_workers,
            attack=SignFlip(),
            byzantine=FixedWorkers(list(range(num_workers - num_byzantine, num_workers))),
            loss=nn.NLLLoss(),
            steps=number,
            batch_size=SAMPLES * num_workers,
        )

    return rounds


def floor(model: nn.Module, num_workers: int) -> Callable[[int], None]:
    """One plain backward pass over all samples of a round: no engine can be faster."""
    inputs, targets = samples()[: SAMPLES * num_workers]
    model = copy.deepcopy(model)

    def rounds(number: int) -> None:
        for _ in range(number):
            model.zero_grad()
            nn.functional.nll_loss(model(inputs), targets).backward()

    return rounds


def compare(
    peer: Any, name: str, num_workers: int, num_byzantine: int, number: int, repeats: int
) -> dict[str, Any]:
    dataset = samples()
    model = getattr(importlib.import_module("byzfl.fed_framework.models"), name)()
    loops = {
        "phalanx": our_loop(model, dataset, num_workers, num_byzantine),
        "byzfl": peer_loop(peer, name, dataset, num_workers, num_byzantine),
        "floor": floor(model, num_workers),
    }
    calls = {side: lambda loop=loop: loop(number) for side, loop in loops.items()}
    timings = side_by_side(calls, "phalanx", repeats, warm_up=1)
    low, high = timings["byzfl"].ratio_quartiles
    return {
        "model": name,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "workers": num_workers,
        "liars": num_byzantine,
        "samples_a_worker": SAMPLES,
        **{f"{side}_ms": 1e3 * timing.median_s / number for side, timing in timings.items()},
        **{
            f"{side}_quartiles_ms": [1e3 * end / number for end in timing.quartiles_s]
            for side, timing in timings.items()
        },
        "rounds_a_second": number / timings["phalanx"].median_s,
        "ratio": timings["byzfl"].ratio,
        "ratio_quartiles": [low, high],
        "bound": timings["byzfl"].median_s / timings["floor"].median_s,
        "target": TARGET,
        "met": timings["byzfl"].ratio >= TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = load_byzfl()
    if peer is None:
        raise SystemExit("byzfl is not installed: make bench installs it")
    env = environment("phalanx", "torch", "byzfl") | {"threads": options.threads}
    rows = []
    for case in CASES:
        row = compare(peer, *case, repeats=3 if options.quick else 7)
        print(
            f"{row['model']:14} {row['workers']:3} workers: {row['phalanx_ms']:8.2f} ms, byzfl "
            f"{row['byzfl_ms']:8.2f} ms, ratio {row['ratio']:5.2f}, at most {row['bound']:.1f}"
        )
        rows.append(row)
    if not options.quick:
        columns = {
            "model": "byzfl's model",
            "parameters": "parameters",
            "workers": "workers",
            "liars": "liars",
            "phalanx_ms": "Phalanx (ms a round)",
            "byzfl_ms": "byzfl (ms a round)",
            "ratio": "ratio",
            "bound": "ratio if computing gradients were all",
            "met": "at least 5",
        }
        remark = (
            "The last ratio compares the peer with one plain backward pass over all samples "
            "of a round: where computing dominates, as with the convolutional network, both sides "
            "run the same kernels and no engine can be much faster. The peer's bad workers compute "
            "nothing, ours do."
        )
        write_measurement("local_engine", CLAIM, env, rows, columns, remark)


if __name__ == "__main__":
    main()
