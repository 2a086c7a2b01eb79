"""Coded shuffling: bytes that caches and packets save, by the law and on real bytes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.coded_computation import CodedShuffle, ShuffleSession
from phalanx.data import Digits
from phalanx.experiments import Cell, Records, grid, load
from phalanx.reporting.format import listed, percent
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized
from phalanx.training import Ray

_TOLERANCE = 0.1  # packets may be so many more than the law's, which holds for many rows
_SIZES = (300, 1_000, 3_000, 10_000, 30_000, 100_000)  # rows, of which those up to `num_rows`


@dataclass(frozen=True)
class CodedShuffling(Recipe):
    """Coded shuffling against sending rows one by one: packets by workers, cache and rows.

    Rows of random bytes are shuffled for some epochs and decoded by every worker. Then the images
    of digits are shuffled among real workers on Ray.
    """

    name: ClassVar[str] = "coded-shuffling"

    num_rows: int = sized(6_000, 12_000, 60_000)
    """Rows of the shuffles that are counted."""
    workers: tuple[int, ...] = (2, 5, 10, 20)
    """Numbers of workers."""
    excess: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    """Shares of the rows that are cached beyond a worker's own (alpha in the paper)."""
    epochs: int = 2
    """Epochs of each shuffle."""
    real_workers: int = sized(0, 4, 4)
    """Workers on Ray; 0 starts none."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Shuffles by workers and cache, by rows, and on Ray."""
        rows = self.num_rows
        by_cache = [
            CodedShuffle(n, rows, alpha + 1 / n)
            for n in self.workers
            for alpha in self.excess
            if alpha + 1 / n < 1
        ]
        by_rows = [CodedShuffle(10, number, 0.3) for number in _SIZES if number <= rows]
        fixed, sizes = {"epochs": self.epochs}, {"num_workers": self.real_workers}
        return [
            *grid(_count, {"part": {"cache": {}}, "shuffle": by_cache}, fixed),
            *grid(_count, {"part": {"rows": {}}, "shuffle": by_rows}, fixed),
            *(
                grid(_deliver, {"part": {"real": {}}}, sizes, alone=True)
                if sizes["num_workers"]
                else []
            ),
        ]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Whether all was decoded, the law, the gain, and what few rows lose."""
        by_cache, by_rows = found.where(part="cache"), found.where(part="rows")
        best, least = (by(by_cache, key=lambda one: one["gain"]) for by in (max, min))
        worst = by_cache.reduce("deviation", max)
        exact = found.reduce("exact", all, part=["cache", "rows"])
        real = found.where(part="real")[0] if "real" in found.labels("part") else None
        sent = real["coded"] + real["plan"] if real else 0
        values = {
            **best.values,
            "least": least["gain"],
            "cached": percent(best["cached"]),
            "right": "every byte" if exact else "not every byte",
            "worst": percent(worst),
            "ideal": by_rows[-1]["law's gain"],
            "trend": listed([f"{one['gain']:.2f} with {one['rows']:,} rows" for one in by_rows]),
            "real": self.told["real" if real else "no real"].format(n=self.real_workers, real=real),
        }
        holds = {
            "exact": [exact],
            "law": [worst <= _TOLERANCE, True],
            "gain": [best["gain"] >= 0.8 * best["law's gain"], True],
            "rows": [by_rows[-1]["gain"] > by_rows[0]["gain"]],
            "real": [real["exact"] and sent < real["uncoded"]] if real else None,
        }
        tables = {"cache": by_cache, "rows": by_rows}
        return report(
            self.told, holds, values, tables, {"gain": self._lines(by_cache)}, answer="answer"
        )

    def _lines(self, found: Records) -> dict[str, Any]:
        lines = {}
        for number in self.workers:
            own = [one for one in found if one["workers"] == number]
            alphas = [one["alpha"] for one in own]
            lines[f"{number} workers"] = (alphas, [one["gain"] for one in own])
            lines[f"{number}, law"] = (alphas, [one["law's gain"] for one in own])
        return lines


def _count(shuffle: CodedShuffle, epochs: int) -> dict[str, Any]:
    """Plans, sends and decodes; every worker's bytes are compared with its rows'."""
    source = torch.Generator().manual_seed(0)
    content = torch.randint(0, 256, (shuffle.num_rows, 8), generator=source, dtype=torch.uint8)
    caches = shuffle.start()
    held = [shuffle.fill(worker, content) for worker in range(shuffle.num_workers)]
    needed, packets, exact = 0.0, 0.0, True
    for epoch in range(1, epochs + 1):
        plan = shuffle.plan(epoch, caches)
        sent = shuffle.encode(plan, content)
        held = [shuffle.decode(plan, worker, sent, one) for worker, one in enumerate(held)]
        exact &= all(one.content.equal(content[one.rows]) for one in held)
        caches = shuffle.update(epoch, caches)
        needed, packets = needed + plan.num_needed, packets + plan.num_packets
    needed, packets = needed / epochs, packets / epochs
    number, cached = shuffle.num_workers, shuffle.capacity / shuffle.num_rows
    return {
        "workers": number,
        "rows": shuffle.num_rows,
        "alpha": cached - 1 / number,
        "needed": needed,
        "packets": packets,
        "law": shuffle.ideal_packets,
        "gain": needed / packets if packets else 1.0,
        "law's gain": shuffle.ideal_gain,
        "(alpha + 1/n) n": cached * number,
        "deviation": packets / shuffle.ideal_packets - 1 if shuffle.ideal_packets else 0.0,
        "cached": shuffle.cache_fraction,
        "group": max(map(len, shuffle.groups)),
        "exact": exact,
    }


def _deliver(num_workers: int) -> dict[str, Any]:
    """What two epochs of the digits take on Ray, with caches of half the rows."""
    digits = load(Digits()).train
    assert isinstance(digits, TensorDataset)
    tensors = digits.tensors
    shuffle = CodedShuffle(num_workers, len(digits), cache_fraction=0.5)
    sent, exact = [], True
    with ShuffleSession(Ray(), shuffle, tensors) as session:
        for epoch in (1, 2):
            sent.append(session.advance())
            for worker, held in enumerate(session.map(_as_they_are)):
                share = shuffle.share(worker, epoch)
                exact &= all(map(torch.equal, held, [one[share] for one in tensors]))
    totals = {
        kind: sum(getattr(one, f"{kind}_bytes") for one in sent)
        for kind in ("coded", "uncoded", "plan")
    }
    return {**totals, "exact": exact, "right": "every byte" if exact else "not all"}


def _as_they_are(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What a worker holds of its share."""
    return tensors
