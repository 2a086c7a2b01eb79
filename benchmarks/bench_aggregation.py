"""Every rule against the plain mean over the same bytes, and against ByzFL's.

    python benchmarks/bench_aggregation.py [--quick] [--threads 1]

A figure is the median over rounds of (time of the rule) / (time of `torch.mean(0)`) within a round.
Messages are measured twice: all honest, and with liars who send something large. ByzFL is given a
tensor and an array, and the faster of the two counts.
"""

import argparse
import types
from functools import partial
from typing import Any

import torch

from measurement import cell, write_measurement
from memory import peak_bytes
from peer import load_byzfl
from phalanx.aggregation import (
    CAF,
    Aggregator,
    Bucketing,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    NearestNeighborMixing,
    SignMajority,
    SmallestMaximumEigenvalueAveraging,
    TrimmedMean,
)
from side_by_side import environment, side_by_side

PEER_DIM = 1_000_000
SIZES = {15: 3, 45: 4}  # workers: liars; Bulyan survives no more among 15
GEOMETRY, MIXED, SEARCHED = (6.0, 4.0), (8.0, 5.0), (15.0, 12.0)  # at most, by workers
MIDDLE, AROUND = (8.0, 8.0), (20.0, 20.0)
LARGE = ("Mean", "Krum", "GeometricMedian", "CenteredClipping", "CoordinateMedian", "TrimmedMean")
CLAIM = "Robust rules, against the plain mean over the same bytes and against byzfl's"
COLUMNS = {
    "workers": "workers",
    "dim": "numbers",
    "messages": "messages",
    "rule": "rule",
    "median_s": "s",
    "ratio": "ratio",
    "quartiles": "quartiles",
    "target": "goal",
    "met": "met",
    "memory": "peak memory",
}
REMARK = (
    "The ratio is to `torch.mean(0)`, at most the goal; in rows that name byzfl it is that of its "
    "time to ours, with a tensor or an array as input, whichever is faster, at least the goal. "
    "Rows without a goal are there to compare. Peak memory is what a rule takes beside the "
    "messages, as a share of their bytes, the aggregate included, which is one over the workers; "
    "the goal is 0.1. byzfl's geometric median and centred clipping take 3 and 1 steps; its MDA "
    "and SMEA try all subsets, so they are compared at 15 workers alone; it has no Bulyan."
)


def rules_for(num_byzantine: int) -> dict[str, tuple[Aggregator, tuple[float, float] | None]]:
    """What is measured, and its goals."""
    f = num_byzantine
    mixing = NearestNeighborMixing(f)
    return {
        "Mean": (Mean(), None),
        "Krum": (Krum(f), GEOMETRY),
        "MultiKrum": (MultiKrum(f), GEOMETRY),
        "GeometricMedian": (GeometricMedian(f), GEOMETRY),
        "CenteredClipping": (CenteredClipping(), GEOMETRY),
        "CenteredClipping, 10 steps": (CenteredClipping(iterations=10), GEOMETRY),
        "MinimumDiameterAveraging": (MinimumDiameterAveraging(f), GEOMETRY),
        "MoNNA": (MoNNA(f, reference=f), GEOMETRY),
        "CAF": (CAF(f), None),
        "NearestNeighborMixing, Krum": (mixing >> Krum(f), MIXED),
        "NearestNeighborMixing, GeometricMedian": (mixing >> GeometricMedian(f), MIXED),
        "NearestNeighborMixing, CenteredClipping": (mixing >> CenteredClipping(), MIXED),
        "Bucketing, GeometricMedian": (Bucketing(2) >> GeometricMedian(f), MIXED),
        "SmallestMaximumEigenvalueAveraging": (SmallestMaximumEigenvalueAveraging(f), SEARCHED),
        "Bulyan": (Bulyan(f), SEARCHED),
        "CoordinateMedian": (CoordinateMedian(f), MIDDLE),
        "TrimmedMean": (TrimmedMean(f), MIDDLE),
        "MeanAroundMedian": (MeanAroundMedian(f), AROUND),
        "SignMajority": (SignMajority(f), None),
    }


def peers_for(byzfl: types.ModuleType, num_byzantine: int, num_workers: int) -> dict[str, Any]:
    """What byzfl has of these, by our names."""
    f = num_byzantine
    mixing, bucketing = byzfl.NNM(f), byzfl.Bucketing(2)
    krum, median = byzfl.Krum(f=f), byzfl.GeometricMedian(nu=0.1, T=3)
    found = {
        "Krum": krum,
        "MultiKrum": byzfl.MultiKrum(f=f),
        "GeometricMedian": median,
        "CenteredClipping": byzfl.CenteredClipping(L=1),
        "MoNNA": byzfl.MoNNA(f=f, idx=f),
        "NearestNeighborMixing, Krum": lambda rows: krum(mixing(rows)),
        "Bucketing, GeometricMedian": lambda rows: median(bucketing(rows)),
        "CoordinateMedian": byzfl.Median(),
        "TrimmedMean": byzfl.TrMean(f=f),
        "MeanAroundMedian": byzfl.Meamed(f=f),
    }
    if num_workers <= 15:
        found["MinimumDiameterAveraging"] = byzfl.MDA(f=f)
        for name, theirs in (("SmallestMaximumEigenvalueAveraging", "SMEA"), ("CAF", "CAF")):
            if hasattr(byzfl, theirs):
                found[name] = getattr(byzfl, theirs)(f=f)
    return found


def messages(num_workers: int, dim: int, attacked: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_workers, dim, generator=generator)
    if attacked:
        rows[: SIZES[num_workers]] *= -10
    return rows


def compare(
    num_workers: int, dim: int, attacked: bool, rounds: int, byzfl: types.ModuleType | None
) -> list[dict]:
    rows = messages(num_workers, dim, attacked)
    case = {
        "workers": num_workers,
        "dim": dim,
        "messages": "attacked" if attacked else "honest",
        "target": None,
        "met": None,
        "memory": None,
    }
    rules = rules_for(SIZES[num_workers])
    if dim != PEER_DIM:
        rules = {name: rules[name] for name in LARGE}
    contestants: dict[str, Any] = {"torch.mean": lambda: rows.mean(0)}
    for name, (rule, _) in rules.items():
        contestants[name] = lambda rule=rule: rule(rows)
    if (
        dim == PEER_DIM and not attacked
    ):  # distances that only centred rows give: the slower way through the pass
        offset = rows + 100 * rows[0]
        contestants["Krum, common offset"] = lambda: rules["Krum"][0](offset)
    timings = side_by_side(contestants, "torch.mean", rounds, warm_up=1)
    found = []
    for name, timing in timings.items():
        row = case | {"rule": name} | timing._asdict()
        if name in rules:
            peak = peak_bytes(contestants[name])
            row["memory"] = None if peak is None else peak / rows.nbytes
        goals = rules.get(name.split(", common")[0], (None, None))[1]
        if goals is not None:
            row["target"] = goals[num_workers > 15]
            row["met"] = row["ratio"] <= row["target"]
        found.append(row)
    if byzfl is not None and dim == PEER_DIM and not attacked:
        found += against(byzfl, rows, contestants, case)
    return found


def against(
    byzfl: types.ModuleType, rows: torch.Tensor, ours: dict[str, Any], case: dict[str, Any]
) -> list[dict]:
    """Times of byzfl over ours, on copies, as some of its rules write into what they are given."""
    found = []
    inputs = {"tensor": rows.clone(), "array": rows.clone().numpy()}
    # Some of its rules remember what kind of input they were given first.
    peers = {kind: peers_for(byzfl, SIZES[len(rows)], len(rows)) for kind in inputs}
    for name in peers["tensor"]:
        both = {kind: partial(peers[kind][name], given) for kind, given in inputs.items()}
        timings = side_by_side({"ours": ours[name]} | both, "ours", rounds=3, warm_up=1)
        kind = min(inputs, key=lambda kind: timings[kind].median_s)
        row = case | {"rule": f"byzfl {name} ({kind}) / ours"} | timings[kind]._asdict()
        if name in ("GeometricMedian", "Krum"):
            row |= {"target": 10.0, "met": row["ratio"] >= 10.0}
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 M numbers; nothing is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    byzfl = load_byzfl()
    found = []
    for dim in [PEER_DIM] if options.quick else [PEER_DIM, 11_200_000]:
        for num_workers in SIZES:
            for attacked in (False, True) if dim == PEER_DIM else (False,):
                for row in compare(num_workers, dim, attacked, 9 if dim == PEER_DIM else 3, byzfl):
                    row["quartiles"] = "{:.2f} to {:.2f}".format(*row["ratio_quartiles"])
                    print(" ".join(cell(row[key]).ljust(14) for key in COLUMNS), flush=True)
                    found.append(row)
    if not options.quick:
        facts = environment("phalanx", "torch", "numpy", "byzfl") | {"threads": options.threads}
        write_measurement("aggregation", CLAIM, facts, found, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
