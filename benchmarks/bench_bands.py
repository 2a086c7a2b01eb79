"""Relative error of the cyclic code with the centred band and with the published one, in float32.

    python benchmarks/bench_bands.py [--quick]

All workers are on one circle; s of them, side by side or drawn at random, send a reversed gradient.
"""

import argparse
from typing import Any

import torch

from measurement import cell, write_measurement
from phalanx.coding import DracoCyclic
from phalanx.errors import DecodeError
from side_by_side import environment

CLAIM = "The centred band against the published one: error of the decoded gradient"
SHAPES = [(5, 1), (9, 2), (15, 3), (10, 3), (21, 2), (31, 3), (45, 2), (45, 5)]
DIM = 20_000
COLUMNS = {
    "workers": "workers",
    "liars": "liars",
    "band": "band",
    "largest_weight": "largest weight",
    "numbers": "numbers a message",
    "median_error": "median relative error",
    "worst_error": "worst",
    "refused": "refused to decode",
    "misnamed": "liars misnamed",
    "trials": "trials",
}
REMARK = (
    "float32 messages of 20,000 parameters, one circle for all workers. Half of the trials have "
    "the liars side by side. By default, circles are no longer than 21."
)


def trial(code: DracoCyclic, adjacent: bool, seed: int) -> tuple[float | None, bool]:
    """Relative error, None if decoding was refused; and whether exactly the liars were named."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(code.num_workers, DIM, generator=generator)
    messages = code.encode_all([gradients])
    order = torch.randperm(code.num_workers, generator=generator)
    liars = torch.arange(code.num_byzantine) if adjacent else order[: code.num_byzantine]
    messages[liars] *= -100
    try:
        decoded = code.decode(messages, generator=generator)
    except DecodeError:
        return None, False
    mean = gradients.double().mean(dim=0)
    error = (decoded.gradient.double() - mean).norm() / mean.norm()
    return error.item(), set(decoded.suspects.nonzero().flatten().tolist()) == set(liars.tolist())


def measure(num_workers: int, num_byzantine: int, band: Any, trials: int) -> dict[str, Any]:
    code = DracoCyclic(num_workers, num_byzantine, group_length=num_workers, band=band)
    found = [trial(code, seed % 2 == 0, seed) for seed in range(trials)]
    errors = sorted(error for error, _ in found if error is not None)
    return {
        "workers": num_workers,
        "liars": num_byzantine,
        "band": band,
        "largest_weight": code.weights.abs().max().item(),
        "numbers": code.width(DIM),
        "median_error": errors[len(errors) // 2] if errors else None,
        "worst_error": errors[-1] if errors else None,
        "refused": sum(error is None for error, _ in found),
        "misnamed": sum(error is not None and not named for error, named in found),
        "trials": trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few trials; nothing is written")
    options = parser.parse_args()
    found = []
    for num_workers, num_byzantine in SHAPES:
        for band in ("centered", "published"):
            row = measure(num_workers, num_byzantine, band, 4 if options.quick else 20)
            print(" ".join(cell(row[key]).ljust(12) for key in COLUMNS), flush=True)
            found.append(row)
    if not options.quick:
        facts = environment("phalanx", "torch") | {"threads": torch.get_num_threads()}
        write_measurement("bands", CLAIM, facts, found, COLUMNS, REMARK)


if __name__ == "__main__":
    main()
