"""Decoding the straggler codes against the plain mean over the bytes that arrived.

    python benchmarks/bench_straggler_codes.py [--quick] [--threads 1]

A ratio is the median over rounds of (time of the decoder) / (time of `torch.mean(0)` of the
messages that arrived) within a round. In "new set" every round another set of workers arrives, so
that the algebra on the assignment is done each time; in "known set" it is remembered.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from measurement import cell, write_measurement
from phalanx.coding import (
    BernoulliGradientCode,
    CyclicRepetition,
    ErasureHead,
    FractionalRepetition,
    LinearCode,
    RandomStragglers,
    StochasticBlockCode,
)
from side_by_side import environment, side_by_side

NUM_WORKERS, NUM_STRAGGLERS = 45, 9
CLAIM = (
    "Decoding straggler codes, against the plain mean over the bytes that arrived (goal: 1.2 times "
    "with one step, 2 times else)"
)
COLUMNS = {
    "code": "code",
    "set": "set of workers",
    "median_s": "s to decode",
    "ratio": "decode / mean",
    "quartiles": "quartiles",
    "target": "goal",
    "met": "met",
}
REMARK = "45 workers of which 36 arrive (43 for exact codes), float32; all that arrived is read."


def codes() -> dict[str, LinearCode]:
    """Every code that is measured, by the name of its row."""
    block = StochasticBlockCode(NUM_WORKERS, cluster_size=5, inside=0.7, across=0.0375)
    return {
        "fractional repetition s=2": FractionalRepetition(NUM_WORKERS, 2),
        "cyclic repetition s=2": CyclicRepetition(NUM_WORKERS, 2),
        "ErasureHead, one step": ErasureHead(NUM_WORKERS, "one-step", copies=5),
        "ErasureHead, optimal": ErasureHead(NUM_WORKERS, copies=5),
        "BGC, one step": BernoulliGradientCode(NUM_WORKERS, "one-step", expected_load=5),
        "BGC, optimal": BernoulliGradientCode(NUM_WORKERS, expected_load=5),
        "BGC, 10 steps": BernoulliGradientCode(NUM_WORKERS, "algorithmic", expected_load=5),
        "SBC, optimal": block,
    }


def sets(code: LinearCode) -> list[torch.Tensor]:
    """Sets of workers that arrived; the first stands for one that is known."""
    missing = getattr(code, "num_stragglers", NUM_STRAGGLERS)
    draw = torch.Generator().manual_seed(0)
    return [~RandomStragglers(missing)(code.assignment, draw) for _ in range(64)]


def measure(
    name: str, code: LinearCode, messages: torch.Tensor, rounds: int
) -> Iterator[dict[str, Any]]:
    """Both cases of one code."""
    arrived = sets(code)
    known, fresh = arrived[0], iter(arrived[1:])
    rows = messages[known]
    cases: dict[str, Callable[[], object]] = {
        "mean": lambda: rows.mean(0),
        "known set": lambda: code.decode(messages, known),
        "new set": lambda: code.decode(messages, next(fresh)),
    }
    timings = side_by_side(cases, "mean", rounds)
    for case in ("known set", "new set"):
        row = {"code": name, "dim": messages.shape[1], "set": case}
        yield row | timings[case]._asdict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 M coordinates; nothing is written")
    parser.add_argument("--only", default="", help="codes whose name holds this; ditto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dim, rounds = (1_000_000, 7) if options.quick else (11_200_000, 7)
    messages = torch.randn(NUM_WORKERS, dim, generator=torch.Generator().manual_seed(0))
    found = []
    for name, code in codes().items():
        if options.only not in name:
            continue
        for row in measure(name, code, messages, rounds):
            row["target"] = 1.2 if "one step" in name else 2.0
            row["met"] = row["ratio"] <= row["target"]
            row["quartiles"] = "{:.2f} to {:.2f}".format(*row["ratio_quartiles"])
            print(" ".join(cell(row[key]).ljust(16) for key in COLUMNS), flush=True)
            found.append(row)
    if not (options.quick or options.only):
        facts = environment("phalanx", "torch") | {"threads": options.threads}
        write_measurement("straggler_codes", CLAIM, facts, found, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
