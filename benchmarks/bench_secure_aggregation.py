"""Secure aggregation by two servers against the same rule in the clear: time and bytes.

    python benchmarks/bench_secure_aggregation.py [--quick] [--threads 1]

All parties run in one process, one after the other; the ratio is to the rule on the same messages.
"""

import argparse

import torch

from measurement import cell, write_measurement
from phalanx.aggregation import Aggregator, GeometricMedian, MultiKrum
from phalanx.privacy import SecureAggregation, SecureSetup, communication_cost, deal
from side_by_side import environment, side_by_side

CLAIM = "Secure aggregation by two servers, against the same rule in the clear"
SIZES = [(10, 10_000), (10, 100_000), (10, 1_000_000), (25, 100_000), (50, 100_000)]
COLUMNS = {
    "workers": "workers",
    "dim": "numbers",
    "rule": "rule",
    "median_s": "s",
    "ratio": "times the rule in the clear",
    "dealer_share": "share of the dealer",
    "upload_ratio": "upload / float32",
    "between_ratio": "between servers / all messages",
    "dealer_ratio": "from the dealer / one message",
}
REMARK = (
    "Seconds of all parties together: the clients' shares, the dealer, both servers. On machines "
    "of their own the clients work at the same time. Bytes are counted against the messages as "
    "float32."
)


def compare(num_workers: int, dim: int, rounds: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_workers, dim, generator=generator) / dim**0.5
    setup = SecureSetup(num_workers, dim)
    num_byzantine = num_workers // 5
    rules: dict[str, Aggregator] = {
        "MultiKrum": MultiKrum(num_byzantine),
        "GeometricMedian": GeometricMedian(num_byzantine),
    }
    moved = communication_cost(setup)
    found = []
    for name, rule in rules.items():
        secure = SecureAggregation(rule)
        contestants = {
            "clear": lambda rule=rule: rule(rows),
            "secure": lambda secure=secure: secure(rows),
            "dealer": lambda: deal(setup, 0),
        }
        timings = side_by_side(contestants, "clear", rounds, warm_up=1)
        found.append(
            {
                "workers": num_workers,
                "dim": dim,
                "rule": name,
                **timings["secure"]._asdict(),
                "clear_s": timings["clear"].median_s,
                "dealer_share": timings["dealer"].median_s / timings["secure"].median_s,
                "upload_ratio": moved.upload_bytes / (4 * dim),
                "between_ratio": moved.between_servers_bytes / (4 * dim * num_workers),
                "dealer_ratio": moved.from_dealer_bytes / (4 * dim),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    env = environment("phalanx", "torch") | {"threads": options.threads}
    rows = []
    for size in SIZES:
        for row in compare(*size, 2 if options.quick else 11):
            print("  ".join(f"{key}={cell(row[key])}" for key in COLUMNS), flush=True)
            rows.append(row)
    if not options.quick:
        write_measurement("secure_aggregation", CLAIM, env, rows, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
