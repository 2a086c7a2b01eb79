"""Time and memory of the rules against the number of workers, up to 1,000.

    python benchmarks/bench_many_workers.py [--quick] [--threads 1]

A rule that takes longer than a second is not asked to do with more workers. SMEA refuses above
its `max_subsets`; MDA's search grows exponentially with the liars, of which there are four here.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from measurement import FOLDER, cell, write_measurement
from memory import peak_bytes
from phalanx.aggregation import (
    CAF,
    Aggregator,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    MultiKrum,
    NearestNeighborMixing,
    SmallestMaximumEigenvalueAveraging,
    TrimmedMean,
)
from side_by_side import environment

DIM = 100_000
WORKERS = (10, 30, 100, 300, 1000)
PATIENCE_S = 5.0
CLAIM = "Many workers: time and memory of the rules"
COLUMNS = {
    "rule": "rule",
    "workers": "workers",
    "liars": "liars",
    "median_s": "s",
    "ratio": "ratio to the mean",
    "memory": "peak memory",
    "note": "note",
}
REMARK = (
    "100,000 numbers a message, float32, a tenth of the workers lie (four at most where the cost "
    "grows exponentially with them). Peak memory is what a rule takes beside the messages, as a "
    "share of their bytes, the aggregate included. Rules that took more than a second are not "
    "asked to do with more workers.\n\n![Seconds and peak memory against the number of workers, a "
    "line for each rule](measurements/many_workers.svg)"
)


def rules_for(num_workers: int) -> list[Aggregator]:
    f = num_workers // 10
    few = min(f, 4)
    return [
        Mean(),
        Krum(f),
        MultiKrum(f),
        GeometricMedian(f),
        CenteredClipping(),
        NearestNeighborMixing(f) >> Krum(f),
        CoordinateMedian(f),
        TrimmedMean(f),
        MeanAroundMedian(f),
        Bulyan(f),
        CAF(f),
        MinimumDiameterAveraging(few),
        SmallestMaximumEigenvalueAveraging(few),
    ]


def name_of(rule: Aggregator) -> str:
    parts = [*getattr(rule, "before", ()), getattr(rule, "rule", rule)]
    return ", ".join(type(part).__name__ for part in parts)


def measure(rule: Aggregator, rows: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Median seconds, ratio to the mean within a round, and peak memory; or why not."""
    found = {"median_s": None, "ratio": None, "memory": None, "note": None}
    try:
        peak = peak_bytes(lambda: rule(rows))
    except ValueError as error:
        return found | {"note": str(error)}
    seconds, ratios = [], []
    while len(seconds) < rounds and sum(seconds) < PATIENCE_S:
        taken = [_seconds(lambda: rows.mean(0)), _seconds(lambda: rule(rows))]
        seconds.append(taken[1])
        ratios.append(taken[1] / taken[0])
    memory = None if peak is None else peak / rows.nbytes
    times = {"median_s": statistics.median(seconds), "ratio": statistics.median(ratios)}
    return found | times | {"memory": memory}


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def plot(rows: list[dict[str, Any]], axes: Axes, key: str, label: str) -> None:
    """One line a rule: what the key says against the number of workers."""
    for number, name in enumerate(dict.fromkeys(row["rule"] for row in rows)):
        known = [(r["workers"], r[key]) for r in rows if r["rule"] == name and r[key] is not None]
        style = ("-", "--", ":")[number // 5 % 3]
        axes.plot(*zip(*known, strict=True), f"C{number % 10}{style}", marker=".", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("workers")
    axes.set_ylabel(label)


def draw(rows: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot(rows, left, "median_s", "seconds")
    left.set_yscale("log")
    plot(rows, right, "memory", "peak memory / bytes of the messages")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(FOLDER / "many_workers.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="to 100 workers; nothing is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: list[dict[str, Any]] = []
    slow: set[str] = set()
    for num_workers in WORKERS[:3] if options.quick else WORKERS:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(num_workers, DIM, generator=generator)
        for rule in rules_for(num_workers):
            liars = getattr(rule, "num_byzantine", None)
            row = {"rule": name_of(rule), "workers": num_workers, "liars": liars}
            if row["rule"] in slow:
                continue
            row |= measure(rule, rows, 5)
            if (row["median_s"] or 0) > PATIENCE_S / 5:  # a threefold n is at least tenfold work
                slow.add(row["rule"])
            print(" ".join(cell(row[key]).ljust(12) for key in COLUMNS), flush=True)
            found.append(row)
    if not options.quick:
        facts = environment("phalanx", "torch", "numpy") | {"threads": options.threads}
        write_measurement("many_workers", CLAIM, facts, found, COLUMNS, REMARK)
        draw(found)


if __name__ == "__main__":
    main()
