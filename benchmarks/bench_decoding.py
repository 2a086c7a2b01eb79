"""Decoding DRACO's codes against the plain mean over the same bytes, and the memory that it takes.

    python benchmarks/bench_decoding.py [--quick] [--threads 1]

A ratio is the median over rounds of (time of the decoder) / (time of `torch.mean(0)`) within a
round. Memory is the rise of the process's peak resident set during one decoding, gradient included,
as a share of the bytes of the messages (Linux only).
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from measurement import cell, write_measurement
from phalanx.coding import Code, DracoCyclic, DracoRepetition
from side_by_side import environment, side_by_side

NUM_WORKERS = 45
CLAIM = (
    "Decoding DRACO's codes, against the plain mean over the same bytes (goal: 2, 4 and 8 times)"
)
COLUMNS = {
    "code": "code",
    "lie": "lie of s workers a group",
    "median_s": "s to decode",
    "ratio": "decode / mean",
    "quartiles": "quartiles",
    "target": "goal",
    "memory": "memory / messages",
    "met": "met (memory: at most 0.1)",
}
REMARK = (
    "45 workers, 11.2 M numbers of 4 bytes each. One circle: all 45 workers in one cyclic "
    "code, instead of three circles of 15. Field: messages of whole numbers modulo a prime, "
    "against the mean of as many float32 numbers. Memory is the rise of the peak resident set, the "
    "gradient included."
)
LIES = ("none", "reversed", "last coordinate")


def codes() -> dict[str, DracoRepetition | DracoCyclic]:
    """Every code that is measured, by the name of its row."""
    repetition = {
        f"repetition r={2 * s + 1}": DracoRepetition(NUM_WORKERS, s) for s in (1, 2, 3, 4, 7)
    }
    cyclic = {f"cyclic s={s}": DracoCyclic(NUM_WORKERS, s) for s in (1, 3, 5)}
    circle = {
        f"cyclic s={s}, one circle": DracoCyclic(NUM_WORKERS, s, group_length=NUM_WORKERS)
        for s in (5,)
    }
    field = {
        f"field s={s}, {title}": DracoCyclic(NUM_WORKERS, s, length, arithmetic="field")
        for s, title, length in (
            (3, "circles of 15", None),
            (5, "circles of 15", None),
            (5, "one circle", NUM_WORKERS),
        )
    }
    return {**repetition, **cyclic, **circle, **field}


def goal(name: str) -> float:
    """Largest ratio to the plain mean that is good enough."""
    return {"repetition": 2.0, "cyclic": 4.0, "field": 8.0}[name.split()[0]]


def gradients(code: Code, dim: int) -> Iterator[torch.Tensor]:
    """One block per partition, so that the gradients never lie beside the messages."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(1, dim, generator=generator) for _ in range(code.num_partitions))


@contextmanager
def telling(messages: torch.Tensor, code: Any, lie: str) -> Iterator[None]:
    """Has s workers of every group lie for a while, in place: all by one lie, side by side."""
    liars = [group.start + i for group in code.groups for i in range(code.num_byzantine)]
    truth = messages[liars]
    if lie == "reversed":
        messages[liars] = code.forged(-100 * truth.double()).to(messages.dtype)
    elif lie == "last coordinate":  # found only after everything was compared
        messages[liars, -1] += 1
    yield
    messages[liars] = truth


def peak_share(messages: torch.Tensor, code: Code) -> float:
    """Rise of the peak resident set during one decoding / bytes of the messages."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
    before = resident("VmHWM")
    code.decode(messages)
    return (resident("VmHWM") - before) / messages.nbytes


def resident(field: str) -> int:
    """Bytes from the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def measure(name: str, code: Any, dim: int, rounds: int) -> Iterator[dict[str, Any]]:
    messages = code.encode_all(gradients(code, dim))
    floats = messages if messages.is_floating_point() else messages.float()
    contestants = {
        "torch.mean": lambda: floats.mean(0),
        "decode": lambda: code.decode(messages),
    }
    for lie in LIES:
        with telling(messages, code, lie):
            timings = side_by_side(contestants, "torch.mean", rounds)
            memory = peak_share(messages, code)
        row = {"code": name, "dim": dim, "lie": lie, "mean_s": timings["torch.mean"].median_s}
        yield row | timings["decode"]._asdict() | {"memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 M coordinates; nothing is written")
    parser.add_argument("--only", default="", help="codes whose name holds this; ditto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dim, rounds = (1_000_000, 7) if options.quick else (11_200_000, 5)
    found = []
    for name, code in codes().items():
        if options.only not in name:
            continue
        for row in measure(name, code, dim, rounds):
            row["target"] = goal(name)
            row["met"] = row["ratio"] <= row["target"] and row["memory"] <= 0.1
            row["quartiles"] = "{:.2f} to {:.2f}".format(*row["ratio_quartiles"])
            print(" ".join(cell(row[key]).ljust(16) for key in COLUMNS), flush=True)
            found.append(row)
    if not (options.quick or options.only):
        facts = environment("phalanx", "torch") | {"threads": options.threads}
        write_measurement("decoding", CLAIM, facts, found, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
