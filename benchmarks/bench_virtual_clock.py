"""Rounds a second on the virtual clock, by policy and by what becomes of late work.

    python benchmarks/bench_virtual_clock.py [--quick] [--threads 1]

Goal: 10,000 rounds of 1,000 workers in less than 10 seconds, drawing the delays included.
"""

import argparse
import time
from typing import Any, Literal

import torch

from measurement import cell, write_measurement
from phalanx.stragglers import (
    AdaptiveDeadline,
    Bursty,
    Deadline,
    DelayModel,
    ShiftedExponential,
    UntilDecodable,
    WaitFor,
    WaitForAll,
    WaitingPolicy,
    virtual_clock,
)
from side_by_side import environment

NUM_WORKERS = 1000
CLAIM = "Rounds of 1,000 workers on the virtual clock (goal: 10,000 in 10 s)"
COLUMNS = {
    "policy": "policy",
    "late": "late work",
    "delays": "delays",
    "rounds": "rounds",
    "draw_s": "s to draw",
    "clock_s": "s on the clock",
    "rounds_per_s": "rounds / s",
    "met": "met",
}
REMARK = "One run each. UntilDecodable asks a code of which any 800 workers are enough."


def enough(arrived: torch.Tensor) -> bool:
    """Whether a code decodes of which any 800 workers are enough."""
    return int(arrived.sum()) >= 800


POLICIES: list[WaitingPolicy] = [
    WaitForAll(),
    WaitFor(800),
    Deadline(3.0),
    AdaptiveDeadline(first_s=5.0),
    UntilDecodable(enough),
]
MODELS: list[DelayModel] = [ShiftedExponential(), Bursty()]


def measure(
    policy: WaitingPolicy,
    model: DelayModel,
    late: Literal["cancelled", "finished"],
    rounds: int,
) -> dict[str, Any]:
    began = time.perf_counter()
    delays = model.draw(rounds, NUM_WORKERS, torch.Generator().manual_seed(0))
    drawn = time.perf_counter()
    virtual_clock(delays, policy, late)
    ended = time.perf_counter()
    return {
        "policy": type(policy).__name__,
        "late": late,
        "delays": type(model).__name__,
        "rounds": rounds,
        "draw_s": drawn - began,
        "clock_s": ended - drawn,
        "rounds_per_s": rounds / (ended - began),
        "met": rounds / (ended - began) > 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 rounds; nothing is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for model in MODELS:
        for policy in POLICIES:
            for late in ("cancelled", "finished"):
                row = measure(policy, model, late, 1_000 if options.quick else 10_000)
                print(" ".join(cell(row[key]).ljust(18) for key in COLUMNS), flush=True)
                found.append(row)
    if not options.quick:
        facts = environment("phalanx", "torch") | {"threads": options.threads}
        write_measurement("virtual_clock", CLAIM, facts, found, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
