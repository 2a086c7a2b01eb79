"""Codecs against their limits: top-k and torch.topk, packing and a copy, ATOMO and full SVDs.

    python benchmarks/bench_compression.py [--quick]

On one thread. The gradient is Gaussian, as large as that of ResNet-18, in float32.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from measurement import cell, write_measurement
from phalanx.compression import (
    QSGD,
    Atomo,
    PowerSGD,
    RandomizedSingularVectors,
    ScaledSign,
    SignSGD,
    TopK,
)
from phalanx.compression.selection import largest
from phalanx.models import ResNet18
from side_by_side import environment, side_by_side

CLAIM = "Encoding and decoding a gradient of 11.2 M numbers"
COLUMNS = {
    "what": "what",
    "against": "against",
    "median_s": "seconds",
    "ratio": "ratio",
    "target": "goal: at most",
    "met": "met",
}
REMARK = (
    "One thread. The ratio is that of the times: below 1 is faster than what it is compared with. "
    "Full decompositions are `torch.linalg.svd` of the same matrices, out-channels first."
)
Case = tuple[str, str, Callable[[], object], Callable[[], object], float | None]


def cases(quick: bool) -> list[Case]:
    source = torch.Generator().manual_seed(0)
    shapes = [tuple(one.shape) for one in ResNet18((3, 32, 32), 10).parameters()]
    tensors = [torch.randn(shape, generator=source) for shape in shapes]
    if quick:
        tensors = tensors[: len(tensors) // 2]
    flat = torch.cat([x.view(-1) for x in tensors])
    matrices = [x.view(len(x), -1) for x in tensors if x.dim() > 1]
    other = torch.empty_like(flat)

    def copy() -> object:
        return other.copy_(flat)

    def decompose() -> object:
        return [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]

    def each(compressor: Any) -> Callable[[], object]:
        return lambda: [compressor.encode(matrix, source) for matrix in matrices]

    found: list[Case] = []
    for ratio in (0.001, 0.01, 0.1):
        count = int(ratio * flat.numel())
        found.append(
            (
                f"choice of the largest {ratio:.1%}",
                "torch.topk",
                lambda count=count: largest(flat, count),
                lambda count=count: torch.topk(flat.abs(), count, sorted=False),
                1 / 3,
            )
        )
        found.append((f"TopK({ratio})", "a copy", lambda r=ratio: TopK(r).encode(flat), copy, None))
    for compressor, target in ((SignSGD(), 4.0), (ScaledSign(), 4.0), (QSGD(), 10.0)):
        name = f"{type(compressor).__name__}()"
        message = compressor.encode(flat, source)
        encode = lambda one=compressor: one.encode(flat, source)  # noqa: E731
        decode = lambda one=compressor, message=message: one.decode(message)  # noqa: E731
        found.append((f"{name}, encode", "a copy", encode, copy, target))
        found.append((f"{name}, decode", "a copy", decode, copy, target))
    found.append(("Atomo(), all matrices", "full SVDs", each(Atomo()), decompose, 0.2))
    sketched = Atomo(RandomizedSingularVectors())
    what = "Atomo(RandomizedSingularVectors())"
    found.append((f"{what}, all matrices", "full SVDs", each(sketched), decompose, 0.05))
    falling = [_falling(matrix) for matrix in matrices]
    found.append(
        (
            f"{what}, singular values 1 / i",
            "full SVDs",
            lambda: [sketched.encode(matrix, source) for matrix in falling],
            lambda: [torch.linalg.svd(matrix, full_matrices=False) for matrix in falling],
            0.05,
        )
    )
    found.append(("PowerSGD(), all matrices", "full SVDs", each(PowerSGD()), decompose, None))
    return found


def _falling(matrix: torch.Tensor) -> torch.Tensor:
    """The singular vectors of a matrix, with singular values that fall like those of gradients."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left / torch.arange(1, len(values) + 1)) @ right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of it; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for what, against, ours, theirs, target in cases(options.quick):
        slow = against == "full SVDs"  # two seconds each
        rounds = 3 if options.quick else 5 if slow else 15
        timing = side_by_side({"ours": ours, "theirs": theirs}, "theirs", rounds, 1)["ours"]
        row = {
            "what": what,
            "against": against,
            "median_s": timing.median_s,
            "ratio": timing.ratio,
            "ratio_quartiles": timing.ratio_quartiles,
            "target": target,
            "met": None if target is None else timing.ratio <= target,
        }
        print(" ".join(cell(row[key]).ljust(26) for key in COLUMNS), flush=True)
        rows.append(row)
    if not options.quick:
        facts = environment("phalanx", "torch") | {"threads": torch.get_num_threads()}
        write_measurement("compression", CLAIM, facts, rows, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
