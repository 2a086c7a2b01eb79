"""Rounds under an adaptive adversary against every code that votes: is an honest worker ever named?

    python benchmarks/fuzz_verdicts.py --rounds 100000 [--first 0]

The adversary knows the code, all honest messages and the decoder. Within the bound it chooses whom
to corrupt and what these send: chains that begin at an honest message and end beyond the tolerance,
copies, common lies, lies in the last bit. It plays several plans through the decoder, and varies
the one that came nearest to naming an honest worker, or to an error beyond the stated one. Every
plan is a round.

`--first` goes on from a round: its figures are added to those that were written.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from measurement import FOLDER, cell, write_measurement
from phalanx.coding import Code, Decoded, Detox, DracoRepetition
from phalanx.errors import DecodeError
from side_by_side import environment

CLAIM = "Rounds under an adaptive adversary: honest workers named, and errors beyond the stated one"
COLUMNS = {
    "code": "code",
    "rounds": "rounds",
    "erasures": "messages lost",
    "byzantine": "Byzantine messages",
    "named": "of them named",
    "honest_named": "honest workers named",
    "beyond_error": "errors beyond the stated one",
    "refused": "rounds refused",
}
REMARK = (
    "Within the bound: e missing and b Byzantine messages of a group with e + 2 b <= 2 s "
    "(repetition); q Byzantine workers in all (DETOX, which states no error, and refuses a round "
    "where its second stage could not bear the groups that are lost). Messages of 1 to 40 numbers "
    "in float16, bfloat16, float32 and float64; with a tolerance honest replicas differ by up to "
    "all of it."
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TOLERANCES = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-3, torch.float64: 1e-9}
SHAPES = [(3, 1), (5, 2), (7, 3), (7, 2), (9, 1), (10, 2), (11, 5)]
PLANS = 3  # that the adversary tries in a scene, the last of them a variation of the best
KINDS = ("repetition", "repetition with a tolerance", "DETOX", "DETOX with a tolerance")


@dataclass
class Scene:
    """A round before the adversary has its say."""

    code: Code
    groups: tuple[tuple[int, ...], ...]
    honest: Tensor
    arrived: Tensor
    tolerance: float
    byzantine: list[int]


def draw(upper: int, generator: torch.Generator) -> int:
    return int(torch.randint(upper, (), generator=generator))


def shuffled(items: list[int], generator: torch.Generator) -> list[int]:
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


def scene(kind: str, seed: int) -> Scene:
    """A code, what honest workers send, what is lost, and who is Byzantine."""
    source = torch.Generator().manual_seed(seed)
    dtype = DTYPES[draw(len(DTYPES), source)]
    tolerance = TOLERANCES[dtype] * 4.0 ** -draw(3, source) if "tolerance" in kind else 0.0
    if kind.startswith("DETOX"):
        n = 9 + draw(13, source)
        size = (3, 5)[draw(2, source)]
        q = 1 + draw(min(5, (n - 1) // 2), source)
        code: Code = Detox(n, q, size, num_corrupted=0, tolerance=tolerance, seed=seed)
        groups = code.groups
    else:
        n, s = SHAPES[draw(len(SHAPES), source)]
        code = DracoRepetition(n, s, partitions="group", tolerance=tolerance)
        groups = tuple(map(tuple, code.groups))
    dim = 1 + draw(40, source)
    arrived = torch.ones(n, dtype=torch.bool)
    if draw(3, source) == 0:
        arrived = torch.rand(n, generator=source) < 0.8
        for group in groups:
            if not arrived[list(group)].any():
                arrived[group[0]] = True
    honest = torch.empty(n, dim, dtype=dtype)
    for group in groups:
        honest[list(group)] = replicas(len(group), dim, dtype, tolerance, source)
    byzantine = corrupted(code, groups, arrived, source)
    return Scene(code, groups, honest, arrived, tolerance, byzantine)


def replicas(
    number: int, dim: int, dtype: torch.dtype, tolerance: float, source: torch.Generator
) -> Tensor:
    """Honest messages of one group: any two within the tolerance, as far apart as that allows."""
    center = torch.randn(dim, generator=source, dtype=torch.float64).to(dtype).double()
    if tolerance == 0:
        return center.to(dtype).expand(number, dim)
    offsets = torch.randn(number, dim, generator=source, dtype=torch.float64)
    if draw(2, source):  # on one line, at its ends
        offsets = offsets[:1] * torch.randint(-1, 2, (number, 1), generator=source)
    longest = offsets.norm(dim=1).max().clamp_min(1e-300)
    width = 0.45 * tolerance * float(torch.rand((), generator=source)) ** 0.25
    rows = (center + offsets / longest * width * center.norm()).to(dtype)
    distances = torch.cdist(
        rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    norms = rows.double().norm(dim=1)
    near = distances <= 0.999 * tolerance * torch.maximum(norms[:, None], norms)
    return rows if near.all() else center.to(dtype).expand(number, dim)  # rounding took them apart


def corrupted(
    code: Code, groups: tuple[tuple[int, ...], ...], arrived: Tensor, source: torch.Generator
) -> list[int]:
    """Whom the adversary corrupts, as many as the bound allows or a few less."""
    here = [[worker for worker in group if arrived[worker]] for group in groups]
    if isinstance(code, DracoRepetition):
        chosen = []
        for voters in here:
            most = (len(voters) - 1) // 2
            number = most - (draw(most + 1, source) if draw(4, source) == 0 else 0)
            chosen += shuffled(voters, source)[:number]
        return chosen
    number = code.num_tolerated - (draw(2, source) if draw(3, source) == 0 else 0)
    if draw(2, source):  # win as many groups as they can
        order = [
            worker for index in shuffled(list(range(len(here))), source) for worker in here[index]
        ]
    else:
        order = shuffled([worker for voters in here for worker in voters], source)
    return order[:number]


def lies(stage: Scene, source: torch.Generator) -> Tensor:
    """The messages of a round under one plan of the adversary."""
    messages = stage.honest.clone()
    for group in stage.groups:
        bad = [worker for worker in group if worker in stage.byzantine]
        good = [w for w in group if w not in stage.byzantine and stage.arrived[w]]
        plan, victim = draw(6, source), good[draw(len(good), source)] if good else group[0]
        common = torch.randn(messages.shape[1], generator=source, dtype=torch.float64)
        for place, worker in enumerate(bad):
            if draw(8, source) == 0:
                continue  # tells the truth
            row = stage.honest[worker].double()
            step = common / common.norm() * row.norm() * max(stage.tolerance, 1e-12)
            if plan == 0:  # a chain that leads away from an honest message
                row = stage.honest[victim].double() + 0.97 * (place + 1) * step
            elif plan == 1:  # the far side of the honest, so that some of them look far
                middle = stage.honest[good].double().mean(dim=0) if good else row
                away = stage.honest[victim].double() - middle
                length = away.norm()
                away = away / length if length > 0 else common / common.norm()
                reach = (0.2 + 0.8 * float(torch.rand((), generator=source))) * stage.tolerance
                row = stage.honest[victim].double() + reach * row.norm() * away
            elif plan == 2:  # one lie, told by all
                row = common
            elif plan == 3:  # its own lie
                row = torch.randn(len(row), generator=source, dtype=torch.float64)
            elif plan == 4:  # anything
                kinds = (-100 * row, 0 * row, 1e4 * row, row + 2 * step, row * torch.nan)
                row = kinds[draw(len(kinds), source)]
            messages[worker] = row.to(messages.dtype)
            if plan == 5:  # one unit in the last place
                at = draw(len(row), source)
                up = torch.tensor(torch.inf, dtype=messages.dtype)
                messages[worker, at] = torch.nextafter(messages[worker, at], up)
    messages[~stage.arrived] = torch.nan
    return messages


def excess(stage: Scene, decoded: Decoded) -> float:
    """The error over the stated one, at worst over who is taken for the honest of each group."""
    if isinstance(stage.code, Detox):
        return 0.0
    good = [
        [worker for worker in group if worker not in stage.byzantine and stage.arrived[worker]]
        for group in stage.groups
    ]
    # Farthest from the answer in the direction of a group's own honest messages: each in turn.
    worst = 0.0
    gradient = decoded.gradient.double()
    number = len(stage.groups)
    for index in range(max(map(len, good))):
        truth = stage.honest[[voters[index % len(voters)] for voters in good]].double()
        off = float((gradient - truth.mean(dim=0)).norm())
        scale = float(truth.norm(dim=1).square().mean().sqrt())
        rounding = 2 * torch.finfo(stage.honest.dtype).eps * scale * number
        worst = max(worst, (off - rounding) / scale / max(decoded.error, 1e-300))
    return worst


def nearby(stage: Scene, messages: Tensor, source: torch.Generator) -> Tensor:
    """The same plan with its lies a little nearer to what is honest, or farther from it."""
    factor = 0.8 + 0.4 * float(torch.rand((), generator=source))
    moved = messages.clone()
    for worker in stage.byzantine:
        honest = stage.honest[worker].double()
        moved[worker] = (honest + factor * (messages[worker].double() - honest)).to(moved.dtype)
    return moved


def play(kind: str, seed: int) -> dict[str, int]:
    """Some rounds from one scene: plans of the adversary, and what its best one can be made."""
    stage = scene(kind, seed)
    source = torch.Generator().manual_seed(seed + 2**40)
    honest = torch.ones(len(stage.honest), dtype=torch.bool)
    honest[stage.byzantine] = False
    total = dict.fromkeys(COLUMNS, 0)
    highest, best = (-1, -1.0), stage.honest
    for plan in range(PLANS):
        messages = lies(stage, source) if plan < PLANS - 1 else nearby(stage, best, source)
        framed, ratio = 0, 0.0
        try:
            decoded = stage.code.decode(messages, stage.arrived, generator=source)
        except DecodeError:
            total["refused"] += 1
        else:
            framed, ratio = int((decoded.suspects & honest).sum()), excess(stage, decoded)
            total["named"] += int((decoded.suspects & ~honest).sum())
            total["honest_named"] += framed
            total["beyond_error"] += ratio > 1
        total["rounds"] += 1
        total["erasures"] += int((~stage.arrived).sum())
        total["byzantine"] += len(stage.byzantine)
        if (framed, ratio) > highest:
            highest, best = (framed, ratio), messages
    return total


def fuzz(kind: str, first: int, rounds: int) -> dict[str, Any]:
    """The sums of so many rounds, or up to `PLANS` - 1 more, after the `first` ones."""
    total = dict.fromkeys(COLUMNS, 0)
    for seed in range(first // PLANS, (first + rounds + PLANS - 1) // PLANS):
        for name, value in play(kind, seed).items():
            total[name] += value
    return {**total, "code": kind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100_000, help="in all, over all codes")
    parser.add_argument("--first", type=int, default=0, help="rounds that were run before")
    options = parser.parse_args()
    each = -(-options.rounds // len(KINDS))
    rows = [fuzz(kind, options.first // len(KINDS), each) for kind in KINDS]
    if options.first:
        before = json.loads((FOLDER / "fuzz_verdicts.json").read_text(encoding="utf-8"))["rows"]
        for row, old in zip(rows, before, strict=True):
            row |= {name: row[name] + old[name] for name in COLUMNS if name != "code"}
    for row in rows:
        print(" ".join(f"{title}: {cell(row[name])}" for name, title in COLUMNS.items()))
    facts = environment("phalanx", "torch") | {"threads": torch.get_num_threads()}
    write_measurement("fuzz_verdicts", CLAIM, facts, rows, COLUMNS, REMARK)
    if any(row["honest_named"] or row["beyond_error"] for row in rows):
        raise SystemExit("an honest worker was named, or an error was larger than stated")


if __name__ == "__main__":
    main()
