"""Every rule against the plain mean over the same bytes, and against ByzFL's.

    python benchmarks/bench_aggregation.py [--quick] [--threads 1]

A figure is the median over rounds of (time of the rule) / (time of `torch.mean(0)`) within a round.
"""

import argparse
import types
from typing import Any

import torch

from measurement import cell, write_measurement
from peer import load_byzfl
from phalanx.aggregation import CoordinateMedian, GeometricMedian, Krum, Mean, MultiKrum
from side_by_side import environment, side_by_side

PEER_DIM = 1_000_000
SIZES = {15: 3, 45: 5}  # workers: liars
TARGETS = {15: 6.0, 45: 4.0}  # for rules by geometry
CLAIM = "Robust rules, against the plain mean over the same bytes and against byzfl's"
COLUMNS = {
    "workers": "workers",
    "dim": "numbers",
    "rule": "rule",
    "median_s": "s",
    "ratio": "ratio",
    "quartiles": "quartiles",
    "target": "goal",
    "met": "met",
}
REMARK = (
    "The ratio is to `torch.mean(0)`, and in rows that name byzfl that of its time to ours. "
    "The goals are at most 6 (15 workers) and 4 (45 workers) for GeometricMedian and Krum, and at "
    "least 10 against byzfl. byzfl's geometric median takes 3 steps; ours takes as many as it "
    "needs."
)


def messages(num_workers: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_workers, dim, generator=generator)


def compare(num_workers: int, dim: int, rounds: int, peer: types.ModuleType | None) -> list[dict]:
    rows = messages(num_workers, dim)
    num_byzantine = SIZES[num_workers]
    rules = {
        "Mean": Mean(),
        "CoordinateMedian": CoordinateMedian(num_byzantine),
        "GeometricMedian": GeometricMedian(num_byzantine),
        "Krum": Krum(num_byzantine),
        "MultiKrum": MultiKrum(num_byzantine),
    }
    contestants: dict[str, Any] = {"torch.mean": lambda: rows.mean(0)}
    for name, rule in rules.items():
        contestants[name] = lambda rule=rule: rule(rows)
    if dim == PEER_DIM:  # distances that only centred rows give: the slower way through the pass
        offset = rows + 100 * rows[0]
        contestants["Krum, common offset"] = lambda: rules["Krum"](offset)
    timings = side_by_side(contestants, "torch.mean", rounds)
    found = [
        {"workers": num_workers, "dim": dim, "rule": name, **timing._asdict()}
        for name, timing in timings.items()
    ]
    if peer is None or dim != PEER_DIM:
        return found
    theirs = {
        "CoordinateMedian": peer.Median(),
        "GeometricMedian": peer.GeometricMedian(nu=0.1, T=3),
        "Krum": peer.Krum(f=num_byzantine),
        "MultiKrum": peer.MultiKrum(f=num_byzantine),
    }
    for name, other in theirs.items():
        pair = {"ours": contestants[name], "byzfl": lambda other=other: other(rows)}
        timing = side_by_side(pair, "ours", max(3, rounds // 3), warm_up=1)["byzfl"]
        row = {"workers": num_workers, "dim": dim, "rule": f"byzfl {name} / ours"}
        found.append(row | timing._asdict())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 M numbers; nothing is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = load_byzfl()
    found = []
    for dim in [PEER_DIM] if options.quick else [PEER_DIM, 11_200_000]:
        for num_workers in SIZES:
            for row in compare(num_workers, dim, 15 if dim == PEER_DIM else 5, peer):
                judge(row)
                print(" ".join(cell(row[key]).ljust(16) for key in COLUMNS), flush=True)
                found.append(row)
    if not options.quick:
        facts = environment("phalanx", "torch", "numpy", "byzfl") | {"threads": options.threads}
        write_measurement("aggregation", CLAIM, facts, found, COLUMNS, REMARK)


def judge(row: dict[str, Any]) -> None:
    """Adds the goal, if there is one, and whether it is met."""
    row["quartiles"] = "{:.2f} to {:.2f}".format(*row["ratio_quartiles"])
    row["target"] = row["met"] = None
    if row["rule"].startswith("byzfl") and row["rule"].split()[1] in ("GeometricMedian", "Krum"):
        row["target"], row["met"] = 10.0, row["ratio"] >= 10.0
    elif row["rule"].split(",")[0] in ("GeometricMedian", "Krum"):
        row["target"] = TARGETS[row["workers"]]
        row["met"] = row["ratio"] <= row["target"]


if __name__ == "__main__":
    main()
