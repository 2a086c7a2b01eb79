"""Coded shuffling: bytes that caches and packets save, by the law and on real bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.coded_computation import CodedShuffle, RayShuffle
from phalanx.data import Digits
from phalanx.reporting import Plot, Table
from phalanx.reporting.format import count, listed, percent
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe

_TOLERANCE = 0.1  # packets may be so many more than the law's, which holds for many rows
_NOTES = (
    "A worker caches its share, 1 / n of the rows, and a further share alpha. Without coding every "
    "row that is needed and not cached is sent by itself.",
    "gamma is how many times as much as one multicast to all it costs to send a row to each worker "
    "by itself. Coding then gains (alpha + 1 / n) gamma: it pays where gamma exceeds 1 / (alpha + "
    "1 / n). The table's last column is for gamma = n, where a multicast costs one unicast.",
    "The law holds for rows that are many more than sets of workers, 2^n. More than 10 workers are "
    "coded for in groups of at most 10, and gain what a group gains.",
    "Every packet of every epoch was decoded by every worker, and compared byte by byte.",
)


@dataclass(frozen=True)
class CodedShuffling(Recipe):
    """Coded shuffling against sending rows one by one: packets by workers, cache and rows.

    Rows of random bytes are shuffled for some epochs and decoded by every worker. Then the images
    of digits are shuffled among real workers on Ray.

    Cost: about a minute on two cores.
    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded shuffling.
    """

    name: ClassVar[str] = "coded-shuffling"
    paper: ClassVar[str] = (
        "Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, Speeding Up Distributed Machine "
        "Learning Using Codes, IEEE Transactions on Information Theory 2018 (coded shuffling)"
    )

    num_rows: int | None = None
    """Rows of the shuffles that are counted; by default 12,000, or 60,000 in full."""

    workers: tuple[int, ...] = (2, 5, 10, 20)
    """Numbers of workers."""

    excess: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    """Shares of the rows that are cached beyond a worker's own (alpha in the paper)."""

    epochs: int = 2
    """Epochs of each shuffle."""

    real_workers: int = 4
    """Workers on Ray; 0 starts none."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Counts packets, then sends real ones; there is no data to give."""
        rows = self.num_rows or (60_000 if full else 12_000)
        shuffles = [
            CodedShuffle(n, rows, alpha + 1 / n)
            for n in self.workers
            for alpha in self.excess
            if alpha + 1 / n < 1
        ]
        counted = []
        for shuffle in shuffles:
            progress(f"{shuffle.num_workers} workers that cache {percent(shuffle.cache_fraction)}")
            counted.append(_count(shuffle, self.epochs))
        progress("few rows and many")
        sizes = [_count(CodedShuffle(10, number, 0.3), self.epochs) for number in _sizes(rows)]
        real: _Real | None = None
        if self.real_workers and find_spec("ray") is not None:
            progress(f"real packets to {self.real_workers} workers")
            real = self._with_ray()
        return Findings(
            answer=_answer(counted),
            findings=(*_findings(counted, sizes), _real_finding(real, self.real_workers)),
            tables=(
                _table("Packets by workers and cache", counted),
                _table("Packets by rows", sizes),
            ),
            plots=(_plot(counted),),
            notes=_NOTES,
            settings={"rows": rows, "epochs": self.epochs, "full": full},
        )

    def _with_ray(self) -> "_Real":
        """What two epochs of the digits take, with caches of half the rows."""
        digits = Digits().load().train
        assert isinstance(digits, TensorDataset)
        tensors = digits.tensors
        shuffle = CodedShuffle(self.real_workers, len(digits), cache_fraction=0.5)
        traffic, exact = [], True
        with RayShuffle().start(shuffle, tensors) as session:
            for epoch in (1, 2):
                traffic.append(session.advance())
                for worker, held in enumerate(session.map(_as_they_are)):
                    share = shuffle.share(worker, epoch)
                    exact &= all(map(torch.equal, held, [one[share] for one in tensors]))
        return _Real(
            sum(one.coded_bytes for one in traffic),
            sum(one.uncoded_bytes for one in traffic),
            sum(one.plan_bytes for one in traffic),
            exact,
        )


@dataclass(frozen=True)
class _Real:
    """Bytes that were sent to real workers, and whether all decoded to their rows."""

    coded_bytes: int
    uncoded_bytes: int
    plan_bytes: int
    exact: bool


@dataclass(frozen=True)
class _Counted:
    """A shuffle, and rows that were sent for it, a mean over its epochs."""

    shuffle: CodedShuffle
    needed: float
    packets: float
    exact: bool

    @property
    def gain(self) -> float:
        """Rows needed over packets sent."""
        return self.needed / self.packets if self.packets else 1.0

    @property
    def excess(self) -> float:
        """Alpha."""
        return self.shuffle.capacity / self.shuffle.num_rows - 1 / self.shuffle.num_workers

    @property
    def deviation(self) -> float:
        """Packets beyond the law's, relative to them."""
        ideal = self.shuffle.ideal_packets
        return self.packets / ideal - 1 if ideal else 0.0


def _count(shuffle: CodedShuffle, epochs: int) -> _Counted:
    """Plans, sends and decodes; every worker's bytes are compared with its rows'."""
    source = torch.Generator().manual_seed(0)
    content = torch.randint(0, 256, (shuffle.num_rows, 8), generator=source, dtype=torch.uint8)
    caches = shuffle.start()
    held = [shuffle.fill(worker, content) for worker in range(shuffle.num_workers)]
    needed = packets = 0
    exact = True
    for epoch in range(1, epochs + 1):
        plan = shuffle.plan(epoch, caches)
        sent = shuffle.encode(plan, content)
        held = [shuffle.decode(plan, worker, sent, one) for worker, one in enumerate(held)]
        exact &= all(one.content.equal(content[one.rows]) for one in held)
        caches = shuffle.update(epoch, caches)
        needed, packets = needed + plan.num_needed, packets + plan.num_packets
    return _Counted(shuffle, needed / epochs, packets / epochs, exact)


def _sizes(rows: int) -> list[int]:
    """Numbers of rows, from few up to that many."""
    return [number for number in (300, 1_000, 3_000, 10_000, 30_000, 100_000) if number <= rows]


def _as_they_are(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What a worker holds of its share."""
    return tensors


def _findings(counted: Sequence[_Counted], sizes: Sequence[_Counted]) -> tuple[Finding, ...]:
    exact = all(one.exact for one in (*counted, *sizes))
    worst = max(one.deviation for one in counted)
    best = max(counted, key=lambda one: one.gain)
    trend = listed([f"{one.gain:.2f} with {one.shuffle.num_rows:,} rows" for one in sizes])
    return (
        Finding(
            "Every worker ends with its rows, and nothing but coded rows was sent.",
            "exact",
            f"{'every byte' if exact else 'not every byte'} of every worker in every epoch",
            "yes" if exact else "no",
        ),
        Finding(
            "Rows sent are q (1 - p) ((1 - p)^n + n p - 1) / (n p)^2.",
            "the formula, for many rows",
            f"at most {percent(worst)} more, with {counted[0].shuffle.num_rows:,} rows",
            "yes" if worst <= _TOLERANCE else "partly",
        ),
        Finding(
            "Coding gains about 1 + n alpha in rows, and (alpha + 1 / n) gamma in cost.",
            "1 + n alpha",
            f"{best.gain:.2f} with {best.shuffle.num_workers} workers, alpha = {best.excess:.1f} "
            f"and groups of {max(map(len, best.shuffle.groups))}",
            "yes" if best.gain >= 0.8 * best.shuffle.ideal_gain else "partly",
        ),
        Finding(
            "The law holds where rows are many more than sets of workers.",
            f"{sizes[-1].shuffle.ideal_gain:.2f} with 10 workers and alpha = 0.2",
            trend,
            "yes" if sizes[-1].gain > sizes[0].gain else "no",
        ),
    )


def _real_finding(real: _Real | None, num_workers: int) -> Finding:
    claim = "Real workers decode real packets, and fewer bytes are sent."
    if real is None:
        return Finding(claim, NOT_QUOTED, "not measured: Ray is not there", "—")
    fewer = real.coded_bytes + real.plan_bytes < real.uncoded_bytes
    return Finding(
        claim,
        NOT_QUOTED,
        f"the digits among {count(num_workers, 'worker')} on Ray, half of the rows cached: "
        f"{real.coded_bytes:,} bytes of packets and {real.plan_bytes:,} of plans, against "
        f"{real.uncoded_bytes:,} without coding; {'every byte' if real.exact else 'not all'} right",
        "yes" if real.exact and fewer else "no",
    )


def _answer(counted: Sequence[_Counted]) -> str:
    best = max(counted, key=lambda one: one.gain)
    least = min(counted, key=lambda one: one.gain)
    return (
        f"Packets for several workers at once send {least.gain:.2f} to {best.gain:.2f} times fewer "
        f"rows than one by one; most with {best.shuffle.num_workers} workers that cache "
        f"{percent(best.shuffle.cache_fraction)} of them."
    )


def _table(title: str, counted: Sequence[_Counted]) -> Table:
    return Table(
        title,
        "Rows an epoch: needed and not cached, sent with coding, and sent by the law; how many "
        "times fewer they are, by count and by the law; and (alpha + 1 / n) n.",
        (
            "workers",
            "rows",
            "alpha",
            "needed",
            "packets",
            "law",
            "gain",
            "law's gain",
            "(alpha + 1/n) n",
        ),
        tuple(
            (
                one.shuffle.num_workers,
                one.shuffle.num_rows,
                one.excess,
                one.needed,
                one.packets,
                one.shuffle.ideal_packets,
                one.gain,
                one.shuffle.ideal_gain,
                one.excess * one.shuffle.num_workers + 1,
            )
            for one in counted
        ),
    )


def _plot(counted: Sequence[_Counted]) -> Plot:
    numbers = sorted({one.shuffle.num_workers for one in counted})
    alt = "; ".join(
        f"{one.shuffle.num_workers} workers, alpha {one.excess:.1f}: {one.gain:.2f}"
        for one in counted
    )
    return Plot(
        "Times fewer rows, by what is cached",
        "Lines are the law, points what was sent.",
        f"Rows needed over rows sent: {alt}.",
        partial(_draw, counted, numbers),
    )


def _draw(counted: Sequence[_Counted], numbers: Sequence[int], ax: Axes) -> None:
    for number, colour in zip(numbers, COLOURS, strict=False):
        own = [one for one in counted if one.shuffle.num_workers == number]
        places = [one.excess for one in own]
        ax.plot(places, [one.shuffle.ideal_gain for one in own], color=colour)
        ax.plot(places, [one.gain for one in own], "o", color=colour, label=f"{number} workers")
    ax.set_xlabel("share cached beyond a worker's own (alpha)")
    ax.set_ylabel("rows needed / rows sent")
    ax.legend(loc="upper left")
