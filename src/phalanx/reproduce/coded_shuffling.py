"""Coded shuffling: bytes that caches and packets save, by the law and on real bytes."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.coded_computation import CodedShuffle, ShuffleSession
from phalanx.data import Digits
from phalanx.experiments import Cell, Record, Records, grid, load
from phalanx.reporting.format import percent
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized
from phalanx.reproduce.multicast import multicast_ratio
from phalanx.training import Ray

_SIZES = (1_000, 3_000, 12_000, 60_000)  # rows, of which those up to `num_rows`
_SERIES = ((5, 0.2), (10, 0.2), (20, 0.1))  # workers and alpha, by rows


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
        """Shuffles by workers and cache, by rows, the cost of a multicast, and workers on Ray."""
        rows = self.num_rows
        by_cache = [
            CodedShuffle(n, rows, alpha + 1 / n, group_size=size)
            for n in self.workers
            for alpha in self.excess
            for size in sorted({min(n, 10), n})
            if alpha + 1 / n < 1
        ]
        by_rows = [
            CodedShuffle(n, number, alpha + 1 / n, group_size=n)
            for n, alpha in _SERIES
            for number in _SIZES
            if number <= rows and n in self.workers
        ]
        fixed, sizes = {"epochs": self.epochs}, {"num_workers": self.real_workers}
        multicast: dict[str, Any] = {"part": {"multicast": {}}, "num_receivers": self.workers}
        real = grid(_deliver, {"part": {"real": {}}}, sizes, alone=True)
        return [
            *grid(_count, {"part": {"cache": {}}, "shuffle": by_cache}, fixed),
            *grid(_count, {"part": {"rows": {}}, "shuffle": by_rows}, fixed),
            *grid(_multicast, multicast, alone=True),
            *(real if self.real_workers else []),
        ]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Whether all was decoded, gains and costs in every cell, and the law's approach."""
        by_rows = found.where(part="rows")
        ratios = {one["num_receivers"]: one["gamma"] for one in found.where(part="multicast")}
        by_cache = Records(
            replace(one, values={**one.values, **_cost(one, ratios[one["workers"]])})
            for one in found.where(part="cache")
        )
        coded = [one for one in by_cache if one["alpha"] > 1e-9]
        best = max(coded, key=lambda one: one["gain"])
        most = max(one["alpha"] for one in coded)
        full = [one for one in coded if one["alpha"] == most]
        series = {
            number: [one["deviation"] for one in by_rows if one["workers"] == number]
            for number in by_rows.reduce("workers", lambda all_of_them: dict.fromkeys(all_of_them))
        }
        costs = [one for one in coded if one["cost gain"] is not None]
        exact = found.reduce("exact", all, part=["cache", "rows"])
        real = found.where(part="real")[0] if "real" in found.labels("part") else None
        sent = real["coded"] + real["plan"] if real else 0
        reached = [one["gain"] >= one["1 + n alpha"] for one in coded]
        values = {
            **best.values,
            "reached": sum(reached),
            "cells": len(coded),
            "right": "every byte" if exact else "not every byte",
            "published": {f"{one['workers']} workers": one["1 + n alpha"] for one in full},
            "ours": {
                f"{one['workers']} workers in groups of {one['group']}": one["gain"] for one in full
            },
            "alpha": most,
            "trend": {
                f"{number} workers": [percent(one) for one in each]
                for number, each in series.items()
            },
            "sizes": [one for one in _SIZES if one <= self.num_rows],
            "gamma": {f"{number}": ratio for number, ratio in ratios.items()},
            "cost": {
                f"{one['workers']} workers in groups of {one['group']}": one["cost gain"]
                for one in full
            },
            "promised": {f"{one['workers']} workers": one["(alpha + 1/n) gamma"] for one in full},
            "cheaper": sum(one["cost gain"] > 1 for one in costs),
            "real": self.told["real" if real else "no real"].format(n=self.real_workers, real=real),
        }
        holds = {
            "exact": [exact],
            "gain": reached,
            "cost": [one["cost gain"] >= one["(alpha + 1/n) gamma"] for one in costs] or None,
            "law": [sorted(each, reverse=True) == each for each in series.values()],
            "real": [real["exact"] and sent < real["uncoded"]] if real else None,
        }
        tables = {"cache": by_cache, "rows": by_rows}
        return report(
            self.told, holds, values, tables, {"gain": self._lines(by_cache)}, answer="answer"
        )

    def _lines(self, found: Records) -> dict[str, Any]:
        lines: dict[str, Any] = {}
        for number, size in dict.fromkeys((one["workers"], one["group"]) for one in found):
            own = [one for one in found if (one["workers"], one["group"]) == (number, size)]
            alphas, told = [one["alpha"] for one in own], f"{number} workers"
            lines[f"{told} in groups of {size}"] = (alphas, [one["gain"] for one in own])
            lines[f"{told}, 1 + n alpha"] = (alphas, [one["1 + n alpha"] for one in own])
        return lines


def _cost(one: Record, ratio: float | None) -> dict[str, float | None]:
    """What a shuffle gains in cost, if a message to each of n takes so many times one to all."""
    if ratio is None:
        return dict.fromkeys(("gamma", "cost gain", "(alpha + 1/n) gamma"))
    number = one["workers"]
    promised = (one["alpha"] + 1 / number) * ratio
    gain = one["gain"] * ratio / number
    return {"gamma": ratio, "cost gain": gain, "(alpha + 1/n) gamma": promised}


def _multicast(num_receivers: int) -> dict[str, Any]:
    """How many times as long a message to each receiver takes as one to all."""
    return {"gamma": multicast_ratio(num_receivers)}


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
    whole = replace(shuffle, group_size=shuffle.num_workers)  # the paper knows no groups
    number, cached = shuffle.num_workers, shuffle.capacity / shuffle.num_rows
    return {
        "workers": number,
        "rows": shuffle.num_rows,
        "alpha": cached - 1 / number,
        "needed": needed,
        "packets": packets,
        "law": whole.ideal_packets,
        "gain": needed / packets if packets else 1.0,
        "law's gain": whole.ideal_gain,
        "1 + n alpha": cached * number,
        "deviation": packets / whole.ideal_packets - 1 if whole.ideal_packets else 0.0,
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
