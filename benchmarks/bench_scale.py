"""What decoding for 100 workers and 1 B parameters would take, from terms measured on this machine.

    python benchmarks/bench_scale.py [--quick] [--threads 1]

Decoding streams over the coordinates: its time is a price for each of them, and next to nothing
else. The price is the slope between two sizes that fit in memory; the larger size, predicted from
the smaller by the price alone, says how far that is true. On one server a round waits for all
messages on its one link; where ranks decode a share of the coordinates each (`phalanx.ddp`), a
rank sends and takes in about two gradients, whatever the number of ranks.
"""

import argparse
from typing import Any

import torch

from measurement import cell, write_measurement
from phalanx.aggregation import CoordinateMedian, GeometricMedian, Krum, Mean, TrimmedMean
from phalanx.coding import Code, DracoCyclic, DracoRepetition, Uncoded
from side_by_side import environment, side_by_side

NUM_WORKERS, NUM_PARAMETERS = 100, 1_000_000_000
NUM_BYZANTINE = 2
LINK_BYTES_S = 10e9 / 8
CLAIM = "100 workers and 1 B parameters, on paper: what a round would take, from measured terms"
COLUMNS = {
    "method": "method",
    "ns": "ns a coordinate",
    "linear": "time at 4 x the size / 4 x the time",
    "one_decode_s": "one server: s to decode",
    "one_link_s": "s on its link",
    "one_gb": "GB of messages there",
    "ranks_decode_s": "on 100 ranks: s to decode",
    "ranks_link_s": "s on each link",
    "ranks_gb": "GB of messages on each",
}
REMARK = (
    "float32, links of 10 Gbit/s used to the full, one thread; computing gradients, which "
    "redundancy multiplies, is not in it. Times for 1 B parameters are a price for each "
    "coordinate times their number, not measurements."
)


def methods() -> dict[str, Code]:
    """A few rules and the two codes of DRACO, for the same number of Byzantine workers."""
    rules = (
        Mean(),
        Krum(NUM_BYZANTINE),
        GeometricMedian(NUM_BYZANTINE),
        TrimmedMean(NUM_BYZANTINE),
        CoordinateMedian(NUM_BYZANTINE),
    )
    codes = (
        DracoRepetition(NUM_WORKERS, NUM_BYZANTINE),
        DracoCyclic(NUM_WORKERS, NUM_BYZANTINE),
    )
    named: dict[str, Code] = {type(rule).__name__: Uncoded(NUM_WORKERS, rule) for rule in rules}
    return named | {type(code).__name__: code for code in codes}


def terms(rounds: int, dim: int) -> list[dict[str, Any]]:
    """The price of each method, and what follows from it."""
    seconds: dict[int, dict[str, float]] = {}
    for size in (dim, 4 * dim):
        gradients = torch.randn(NUM_WORKERS, size, generator=torch.Generator().manual_seed(0))
        calls = {}
        for name, code in methods().items():
            sent = gradients if isinstance(code, Uncoded) else code.encode_all([gradients])
            calls[name] = lambda code=code, sent=sent: code.decode(sent)
        timed = side_by_side(calls, "Mean", rounds, warm_up=1)
        seconds[size] = {name: one.median_s for name, one in timed.items()}
    small, large = seconds.values()
    link_s = 4 * NUM_PARAMETERS / LINK_BYTES_S
    rows = []
    for name in small:
        price = (large[name] - small[name]) / (3 * dim)
        rows.append(
            {
                "method": name,
                "ns": price * 1e9,
                "linear": large[name] / (4 * small[name]),
                "one_decode_s": price * NUM_PARAMETERS,
                "one_link_s": NUM_WORKERS * link_s,
                "one_gb": NUM_WORKERS * 4 * NUM_PARAMETERS / 1e9,
                "ranks_decode_s": price * NUM_PARAMETERS / NUM_WORKERS,
                "ranks_link_s": 2 * link_s * (NUM_WORKERS - 1) / NUM_WORKERS,
                "ranks_gb": 4 * NUM_PARAMETERS / 1e9,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small; nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = terms(3, 50_000) if options.quick else terms(7, 1_000_000)
    for row in rows:
        print(" ".join(cell(row[key]).ljust(16) for key in COLUMNS), flush=True)
    if not options.quick:
        facts = environment("phalanx", "torch") | {"threads": options.threads}
        write_measurement("scale", CLAIM, facts, rows, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
