"""Search for lies that frame an honest worker, or move DRACO's gradient beyond the stated error.

    python benchmarks/fuzz_decoding.py [--rounds 100000] [--seed 0] [--quick]

Every round draws a code, who is Byzantine, who is missing (within the bound), and a lie of an
adversary who knows the code: along the direction that the parity checks see least once some honest
workers are blamed; agreed upon by all, or drawn by each; dense, in one coordinate, or in two that a
decoder's blocks may lay on top of each other; of 10^-8 to 10^6 times an honest message. An honest
worker that is named, an error beyond the stated one, or a `DecodeError` is a failure.
"""

import argparse
import random
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from measurement import write_measurement
from phalanx.coding import Code, DracoCyclic
from phalanx.errors import DecodeError
from side_by_side import environment

CODES = [
    *((n, s, None) for n, s in ((3, 1), (5, 1), (5, 2), (7, 2), (8, 3), (9, 2), (9, 4))),
    *((n, s, None) for n, s in ((15, 3), (15, 5), (16, 3), (21, 3), (21, 5), (45, 3), (45, 5))),
    (45, 5, 45),
]
SLOW = {(21, 5), (45, 3), (45, 5)}  # get a quarter of the others' rounds
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
COLUMNS = {
    "code": "workers, Byzantine a circle, longest circle",
    "dtype": "messages",
    "rounds": "rounds",
    "framed": "honest worker named",
    "beyond": "error beyond the stated one",
    "refused": "DecodeError",
    "named": "share of Byzantine workers named",
    "worst": "largest error",
}


@cache
def a_round(code: Code, dtype: torch.dtype, number: int, dim: int) -> tuple[Tensor, Tensor, float]:
    """Honest messages, the mean gradient, and the root mean square norm of the gradients."""
    generator = torch.Generator().manual_seed(number)
    gradients = torch.randn(code.num_partitions, dim, generator=generator, dtype=torch.float64)
    gradients += torch.randn(dim, generator=generator, dtype=torch.float64)
    gradients = gradients.to(dtype)
    messages = code.encode_all([gradients])
    gradients = gradients.double()
    return messages, gradients.mean(dim=0), float(gradients.norm() / code.num_partitions**0.5)


@cache
def checks_of(code: Code) -> Tensor:
    """Rows that vanish on every honest round."""
    encoding = code.encoding
    rank = int(torch.linalg.matrix_rank(encoding))
    return torch.linalg.svd(encoding).U[:, rank:].T


def shares(draw: random.Random, code: Code, byzantine: list[int], honest: list[int]) -> Tensor:
    """By how much each Byzantine worker takes part in the lie."""
    kind = draw.choice(["least visible", "least visible", "agreed", "drawn"])
    if kind == "agreed":
        return torch.ones(len(byzantine), 1, dtype=torch.float64)
    if kind == "drawn":
        seed = torch.Generator().manual_seed(draw.getrandbits(60))
        return torch.randn(len(byzantine), 1, generator=seed, dtype=torch.float64)
    near = sorted(honest, key=lambda w: min(abs(w - b) for b in byzantine))
    framed = draw.sample(near[: 2 * len(byzantine) + 2], min(len(byzantine), len(near)))
    framed = framed[: draw.randint(0, len(framed))]
    columns = checks_of(code)[:, [*byzantine, *framed]]
    lie = torch.linalg.svd(columns).Vh[-1, : len(byzantine), None]
    return lie / lie.norm().clamp_min(1e-9)


def direction(draw: random.Random, dim: int) -> Tensor:
    """A unit vector."""
    found = torch.zeros(dim, dtype=torch.float64)
    kind = draw.choice(["dense", "one", "two"])
    if kind == "dense":
        seed = torch.Generator().manual_seed(draw.getrandbits(60))
        found = torch.randn(dim, generator=seed, dtype=torch.float64)
    else:
        first = draw.randrange(dim)
        found[first] = 1.0
        if kind == "two":
            apart = draw.choice([1, 4093, 4096, 4099, 2053 * 3])
            found[(first + apart) % dim] = -draw.choice([1.0, 0.75, 1.5])
    return found / found.norm()


def rounds(code: DracoCyclic, dtype: torch.dtype, number: int, seed: int) -> dict[str, Any]:
    """What so many rounds of one code found."""
    draw = random.Random(f"{seed} {code} {dtype}")
    found: dict[str, Any] = dict.fromkeys(("rounds", "framed", "beyond", "refused", "named"), 0)
    found["worst"], lied = 0.0, 0
    for index in range(number):
        dim = 9_000 if index % 10 == 0 else 120
        honest_messages, mean, typical = a_round(code, dtype, draw.randrange(4), dim)
        group = draw.choice(code.groups)
        missing = draw.randint(0, 2 * code.num_byzantine)
        count = draw.randint(0, (2 * code.num_byzantine - missing) // 2)
        start = draw.choice(group)
        together = [group[(start + step) % len(group)] for step in range(missing + count)]
        picked = draw.choice([together, draw.sample(group, missing + count)])
        draw.shuffle(picked)
        byzantine, absent = sorted(picked[:count]), picked[count:]
        messages = honest_messages.clone()
        if byzantine:
            honest = [worker for worker in group if worker not in picked]
            size = 10 ** draw.uniform(-8, 6) * messages.double().norm(dim=1).mean()
            lie = size * shares(draw, code, byzantine, honest) * direction(draw, dim)
            messages[byzantine] = (messages[byzantine].double() + lie).to(dtype)
        messages[absent] = torch.nan
        arrived = torch.ones(code.num_workers, dtype=torch.bool)
        arrived[absent] = False
        found["rounds"] += 1
        try:
            decoded = code.decode(messages, arrived)
        except DecodeError:
            found["refused"] += 1
            continue
        suspects = set(decoded.suspects.nonzero().flatten().tolist())
        error = float((decoded.gradient.double() - mean).norm()) / typical
        found["framed"] += not suspects <= set(byzantine)
        found["beyond"] += not error <= decoded.error
        found["worst"] = max(found["worst"], error)
        found["named"] += len(suspects & set(byzantine))
        lied += len(byzantine)
    return found | {"named": found["named"] / max(lied, 1)}


def campaign(number: int, seed: int) -> Iterator[dict[str, Any]]:
    """All codes and dtypes, so many rounds in all."""
    cells = [(shape, name) for shape in CODES for name in DTYPES]
    for (workers, byzantine, longest), name in cells:
        code = DracoCyclic(workers, byzantine, group_length=longest)
        described = f"{workers}, {byzantine}, {max(len(group) for group in code.groups)}"
        share = -(-number // len(cells)) // (4 if (workers, byzantine) in SLOW else 1)
        found = rounds(code, DTYPES[name], share, seed)
        print(described, name, found, flush=True)
        yield {"code": described, "dtype": name, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2,000 rounds; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = list(campaign(2_000 if options.quick else options.rounds, options.seed))
    failures = {key: sum(row[key] for row in found) for key in ("framed", "beyond", "refused")}
    total = sum(row["rounds"] for row in found)
    claim = (
        f"{total:,} rounds of adaptive lies against the cyclic code over floats: an honest worker "
        f"named in {failures['framed']}, errors beyond the stated one in {failures['beyond']}, "
        f"refused {failures['refused']}"
    )
    print(claim, f"{time.perf_counter() - started:.0f} s")
    if not options.quick:
        facts = environment("phalanx", "torch") | {"seed": options.seed, "threads": 1}
        write_measurement("fuzz_decoding", claim, facts, found, COLUMNS, __doc__.split("\n\n")[2])
    raise SystemExit(any(failures.values()))


if __name__ == "__main__":
    main()
