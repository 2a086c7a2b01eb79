"""Matching of neurons: benefits by one matrix product against a loop over neurons.

    python benchmarks/bench_matching.py [--quick] [--threads 1]

The loop is how matched averaging is usually programmed: for each neuron of a network an array of
its distances to all global ones. Both are float64 and must agree. Goal: at least 20 times as quick.
"""

import argparse
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from measurement import cell, write_measurement
from phalanx.federated import Matching
from phalanx.federated.matching import Array, Prior, benefit
from side_by_side import environment, side_by_side

CLAIM = "Matching of neurons: one matrix product against a loop over neurons"
COLUMNS = {
    "width": "neurons",
    "features": "features",
    "loop_s": "s, loop",
    "product_s": "s, product",
    "speedup": "loop / product",
    "assignment_s": "s, assignment",
    "visit_speedup": "loop / product, with the assignment",
    "goal": "goal of 20 met",
}
REMARK = (
    "Benefits of matching a network of so many neurons with as many global ones, and as many new, "
    "float64. The assignment problem is solved by SciPy in both; it sets the bound of the last "
    "ratio. The largest difference between the two tables of benefits was {worst:.1e}. Other work "
    "ran on the same cores: trust the ratios, which are taken within a round, not the seconds."
)
NETWORKS = 5


def looped(rows: Array, sums: Array, counts: Array, num_new: int, prior: Prior) -> Array:
    """The same benefits, for each neuron by itself."""
    s0, s = prior.precision, prior.local_precision
    G, S = s * sums, (s0 + s * counts)[:, None]
    popularity = prior.matching.popularity_scale * np.log(counts / (NETWORKS - counts))
    new = 2 * np.log(prior.matching.mass / NETWORKS) - 2 * np.log(np.arange(1, num_new + 1))
    table = np.empty((len(rows), len(G) + num_new))
    for number, row in enumerate(rows):
        gains = ((s * row + G) ** 2 / (S + s)).sum(axis=1) - (G**2 / S).sum(axis=1)
        table[number, : len(G)] = gains + popularity
        table[number, len(G) :] = ((s * row) ** 2 / (s0 + s)).sum() + new
    return table


def measure(width: int, features: int, rounds: int) -> dict[str, Any]:
    source = np.random.default_rng(0)
    rows = source.normal(size=(width, features))
    counts = source.integers(1, NETWORKS, width)
    sums = rows[source.permutation(width)] * counts[:, None]
    sums += source.normal(scale=0.3, size=sums.shape)
    matching = Matching()
    prior = Prior(0.0, 1 / matching.prior_variance, 1 / matching.variance, matching)
    loop, product = (
        looped(rows, sums, counts, width, prior),
        benefit(rows, sums, counts, NETWORKS, width, prior),
    )
    timings = side_by_side(
        {
            "loop": lambda: looped(rows, sums, counts, width, prior),
            "product": lambda: benefit(rows, sums, counts, NETWORKS, width, prior),
            "assignment": lambda: linear_sum_assignment(product, maximize=True),
        },
        "product",
        rounds,
        warm_up=0,  # the two tables above warm it up
    )
    seconds = {name: one.median_s for name, one in timings.items()}
    assert np.array_equal(*(linear_sum_assignment(one, maximize=True) for one in (loop, product)))
    return {
        "width": width,
        "features": features,
        "loop_s": seconds["loop"],
        "product_s": seconds["product"],
        "speedup": timings["loop"].ratio,
        "speedup_quartiles": timings["loop"].ratio_quartiles,
        "assignment_s": seconds["assignment"],
        "visit_speedup": (seconds["loop"] + seconds["assignment"])
        / (seconds["product"] + seconds["assignment"]),
        "goal": timings["loop"].ratio >= 20,
        "worst": float(np.abs(loop - product).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds; nothing is written")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for width, features in ((100, 785), (500, 785), (1000, 785)):
        row = measure(width, features, 1 if options.quick else 2)
        print(" ".join(cell(row[key]).ljust(12) for key in COLUMNS), flush=True)
        found.append(row)
    if not options.quick:
        facts = environment("phalanx", "torch", "numpy", "scipy") | {"threads": options.threads}
        remark = REMARK.format(worst=max(row["worst"] for row in found))
        write_measurement("matching", CLAIM, facts, found, COLUMNS, remark)


if __name__ == "__main__":
    main()
