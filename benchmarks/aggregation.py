"""Every rule against the plain mean over the same bytes, and against ByzFL's.

    python benchmarks/aggregation.py [--quick] [--threads 1 2] [--out FILE.json]

A figure is the median over rounds of (time of the rule) / (time of `torch.mean(0)`) within a round.
"""

import argparse
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch

from phalanx.aggregation import CoordinateMedian, GeometricMedian, Krum, Mean, MultiKrum
from side_by_side import environment, side_by_side, write_json

PEER_DIM = 1_000_000
SIZES = {15: 3, 45: 5}  # workers: liars


class Absent(types.ModuleType):
    """Stands in for a module that is imported, but not needed for what is measured here."""

    __all__: tuple[str, ...] = ()


def load_byzfl() -> types.ModuleType | None:
    """ByzFL, without its experiment runner, which imports torchvision and seaborn at once."""
    if importlib.util.find_spec("byzfl") is None:
        return None
    sys.modules["byzfl.benchmark"] = Absent("byzfl.benchmark")
    return importlib.import_module("byzfl")


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
    parser.add_argument("--quick", action="store_true", help="1 M coordinates only, few rounds")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    peer = load_byzfl()
    environs = environment("phalanx", "torch", "numpy", "byzfl")
    found = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dim in [PEER_DIM] if options.quick else [PEER_DIM, 11_200_000]:
            for num_workers in SIZES:
                rounds = 15 if dim == PEER_DIM and not options.quick else 5
                print(f"\n{threads} threads, {num_workers} workers, {dim:,} coordinates, float32")
                for row in compare(num_workers, dim, rounds, peer):
                    low, high = row["ratio_quartiles"]
                    time_ms = 1e3 * row["median_s"]
                    print(
                        f"  {row['rule']:34} {time_ms:9.1f} ms"
                        f" {row['ratio']:8.2f}  [{low:.2f}, {high:.2f}]"
                    )
                    found.append({"threads": threads, **row})
    if options.out:
        write_json(options.out, environs, found)


if __name__ == "__main__":
    main()
