"""Rounds a minute of `phalanx.federate`: clients together and one by one, and what memory it takes.

    python benchmarks/bench_federated.py [--quick] [--threads 1] [--distillation]

A thousand clients of 20 images each, 100 of whom take part in a round, one pass of SGD in
minibatches of 10. Nobody evaluates. Memory is what a run adds to what the process held before.

With `--distillation` instead: FedDF's distillation with the teachers' logits of all unlabelled
samples kept, against teachers that are asked anew for every minibatch.
"""

import argparse
import copy
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from measurement import write_measurement
from memory import peak_bytes
from phalanx.federated import Distillation, FedAvg, FederatedAlgorithm, Scaffold, federate
from phalanx.federated.distillation import teacher_logits
from phalanx.models import MLP, LeNet
from phalanx.training import Local
from side_by_side import environment, side_by_side

CLAIM = "Federated rounds a minute: clients together and one by one"
CLIENTS, SAMPLED, SAMPLES = 1000, 100, 20
CASES: list[tuple[str, Callable[..., nn.Module], FederatedAlgorithm]] = [
    ("MLP", MLP, FedAvg()),
    ("MLP", MLP, Scaffold()),
    ("LeNet", LeNet, FedAvg()),
]


def clients() -> list[Subset[Any]]:
    draws = torch.Generator().manual_seed(0)
    number = CLIENTS * SAMPLES
    inputs = torch.randn(number, 1, 28, 28, generator=draws)
    data = TensorDataset(inputs, torch.randint(10, (number,), generator=draws))
    return [Subset(data, range(place * SAMPLES, (place + 1) * SAMPLES)) for place in range(CLIENTS)]


def measured(
    make: Callable[..., nn.Module],
    algorithm: FederatedAlgorithm,
    held: list[Subset[Any]],
    chunk_size: int | None,
    rounds: int,
) -> tuple[float, int | None, int]:
    """Rounds a minute after a warm-up round, memory in all, and the number of parameters."""
    seconds: list[float] = []
    found: list[nn.Module] = []

    def run() -> None:
        done = federate(
            lambda: make((1, 28, 28), 10),
            held,
            algorithm,
            rounds=rounds + 1,
            clients_per_round=SAMPLED,
            engine=Local(chunk_size=chunk_size),
            evaluate_every=10**6,
            on_round=lambda _: seconds.append(time.perf_counter()),
            progress=False,
        )
        found.append(done.model)

    memory = peak_bytes(run)
    gaps = [after - before for before, after in pairwise(seconds[:-1])]
    rate = 60 / sorted(gaps)[len(gaps) // 2]
    return rate, memory, sum(one.numel() for one in found[0].parameters())


class Asked:
    """Targets of minibatches, for which all teachers are asked anew."""

    def __init__(self, teachers: list[nn.Module], inputs: torch.Tensor, how: Distillation) -> None:
        self.teachers, self.inputs, self.how = teachers, inputs, how

    def __getitem__(self, chosen: torch.Tensor) -> torch.Tensor:
        return self.how.targets(teacher_logits(self.teachers, self.inputs[chosen]))


def distillation(quick: bool, threads: int) -> None:
    """Seconds of a distillation in both ways, which end with the same student up to rounding."""
    rows = []
    cases = (("MLP", MLP, 10), ("LeNet", LeNet, 10), ("LeNet", LeNet, 40))
    for name, make, number in cases[: 2 if quick else 3]:
        torch.manual_seed(0)
        inputs = torch.randn(640 if quick else 2560, 1, 28, 28)
        teachers = [make((1, 28, 28), 10) for _ in range(number)]
        student = make((1, 28, 28), 10)
        how = Distillation(num_steps=5 if quick else 200)

        def distilled(
            cached: bool,
            student: nn.Module = student,
            teachers: list[nn.Module] = teachers,
            inputs: torch.Tensor = inputs,
            how: Distillation = how,
        ) -> nn.Module:
            pupil, draws = copy.deepcopy(student), torch.Generator().manual_seed(0)
            if cached:
                targets: Any = how.targets(teacher_logits(teachers, inputs))
            else:
                targets = Asked(teachers, inputs, how)
            how.distil(pupil, inputs, targets, generator=draws)
            return pupil

        pupils = [distilled(cached) for cached in (True, False)]
        with torch.no_grad():
            outputs = [pupil(inputs[:500]) for pupil in pupils]
            torch.testing.assert_close(*outputs, atol=1e-2, rtol=1e-2)
        ways = {"kept": lambda: distilled(True), "anew": lambda: distilled(False)}
        timed = side_by_side(ways, "kept", 1 if quick else 3, warm_up=0)
        rows.append(
            {
                "model": name,
                "teachers": number,
                "kept_s": timed["kept"].median_s,
                "anew_s": timed["anew"].median_s,
                "ratio": timed["anew"].ratio,
            }
        )
        print(rows[-1], flush=True)
    if not quick:
        write_measurement(
            "distillation",
            "Distillation: teachers' logits kept, and asked anew",
            environment("phalanx", "torch") | {"threads": threads},
            rows,
            {
                "model": "model",
                "teachers": "teachers",
                "kept_s": "s, logits kept",
                "anew_s": "s, asked anew",
                "ratio": "ratio",
            },
            "2560 unlabelled images, 200 steps with minibatches of 128: ten passes. Both end with "
            "the same student, up to rounding.",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--distillation", action="store_true", help="FedDF's distillation instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.distillation:
        distillation(options.quick, options.threads)
        return
    held, rows = clients(), []
    for name, make, algorithm in CASES:
        rounds = 3 if options.quick else 6
        one, memory_one, size = measured(make, algorithm, held, 1, rounds)
        many, memory_many, _ = measured(make, algorithm, held, 50, rounds)
        rows.append(
            {
                "model": name,
                "algorithm": type(algorithm).__name__,
                "parameters": size,
                "one_by_one": one,
                "together": many,
                "ratio": many / one,
                "one_by_one_mb": None if memory_one is None else memory_one / 1e6,
                "together_mb": None if memory_many is None else memory_many / 1e6,
            }
        )
        print(rows[-1], flush=True)
    if options.quick:
        return
    write_measurement(
        "federated",
        CLAIM,
        environment("phalanx", "torch") | {"threads": options.threads},
        rows,
        {
            "model": "model",
            "algorithm": "algorithm",
            "parameters": "parameters",
            "one_by_one": "rounds a minute, one by one",
            "together": "50 clients together",
            "ratio": "ratio",
            "one_by_one_mb": "MB, one by one",
            "together_mb": "MB, together",
        },
        f"{CLIENTS} clients of {SAMPLES} images, {SAMPLED} a round, one pass in minibatches of 10. "
        "By default convolutions on a CPU go one by one. SCAFFOLD keeps a vector per client that "
        "took part.",
    )


if __name__ == "__main__":
    main()
