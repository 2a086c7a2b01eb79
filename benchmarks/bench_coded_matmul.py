"""Encoding and decoding coded products against the product itself, and the conditioning of codes.

    python benchmarks/bench_coded_matmul.py [--quick] [--threads 1]

A ratio is the median over rounds of (time) / (time of the uncoded product) within a round. Decoding
is from the workers that need most of it: all parity shards, and what is missing of the others.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from measurement import cell, write_measurement
from phalanx.coded_computation import CodedMatmul
from phalanx.stragglers import optimal_num_blocks
from side_by_side import environment, side_by_side

CODES = [(5, 3), (10, 7), (20, 14), (50, 35)]
COLUMNS = {
    "workers": "workers",
    "blocks": "blocks",
    "operand": "operand",
    "product_s": "s for the product",
    "encode": "encode / product",
    "shard": "slowest shard's product / product",
    "decode": "decode / product",
}
CLAIM = "Coded products: encoding once, decoding each time, against the product"
REMARK = (
    "float32, 4,096 x 4,096. Encoding happens once for a matrix. A shard's product is what a "
    "worker computes; at best it is 1 / blocks."
)
CONDITION_COLUMNS = {
    "workers": "workers",
    "blocks": "blocks",
    "gaussian": "random orthonormal rows",
    "chebyshev": "Chebyshev nodes",
}
CONDITION_CLAIM = "Coded products: the largest condition number in decoding"
CONDITION_REMARK = "Over 1,000 sets of workers, or all where there are fewer."


def costs(num_workers: int, num_blocks: int, size: int, rounds: int) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator)
    code = CodedMatmul(num_workers, num_blocks)
    coded = code.encode(matrix)
    arrived = torch.arange(num_workers) >= num_workers - num_blocks
    for operand, columns in (("vector", ()), ("matrix of 256", (256,))):
        x = torch.randn(size, *columns, generator=generator)
        results = torch.stack([shard @ x for shard in coded.shards])

        def shard(x: torch.Tensor = x) -> torch.Tensor:
            return coded.shards[-1] @ x

        timings = side_by_side(
            {
                "product": lambda x=x: matrix @ x,  # type: ignore[misc]
                "encode": lambda: code.encode(matrix),
                "shard": shard,
                "decode": lambda results=results: coded.decode(results, arrived),  # type: ignore[misc]
            },
            "product",
            rounds,
        )
        row = {"workers": num_workers, "blocks": num_blocks, "size": size, "operand": operand}
        ratios = {name: timings[name].ratio for name in ("encode", "shard", "decode")}
        yield row | {"product_s": timings["product"].median_s} | ratios


def conditions(num_workers: int) -> dict[str, Any]:
    num_blocks = optimal_num_blocks(num_workers)
    row: dict[str, Any] = {"workers": num_workers, "blocks": num_blocks}
    for kind in ("gaussian", "chebyshev"):
        code = CodedMatmul(num_workers, num_blocks, parity=kind)  # type: ignore[arg-type]
        row[kind] = code.worst_condition(1000)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,024 x 1,024; nothing is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, rounds = (1024, 5) if options.quick else (4096, 11)
    found = []
    for num_workers, num_blocks in CODES:
        for row in costs(num_workers, num_blocks, size, rounds):
            print(" ".join(cell(row[key]).ljust(14) for key in COLUMNS), flush=True)
            found.append(row)
    conditioned = [conditions(number) for number in (5, 10, 20, 30, 40, 50)]
    for row in conditioned:
        print(" ".join(cell(row[key]).ljust(14) for key in CONDITION_COLUMNS), flush=True)
    if not options.quick:
        facts = environment("phalanx", "torch") | {"threads": options.threads}
        write_measurement("coded_matmul", CLAIM, facts, found, COLUMNS, REMARK)
        write_measurement(
            "coded_matmul_conditioning",
            CONDITION_CLAIM,
            facts,
            conditioned,
            CONDITION_COLUMNS,
            CONDITION_REMARK,
        )


if __name__ == "__main__":
    main()
