"""Coded matrix products: what any k of n workers save, by the law, by the clock and with Ray."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.coded_computation import CodedLeastSquares, CodedMatmul, CodedMatrix, RayMatmul
from phalanx.data import Digits
from phalanx.randomness import generator
from phalanx.reporting import Plot, Table
from phalanx.reporting.format import count, percent
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe
from phalanx.stragglers import (
    ShiftedExponential,
    WaitFor,
    expected_time_mds,
    expected_time_repetition,
    expected_time_uncoded,
    optimal_code_rate,
    optimal_num_blocks,
    optimal_time,
    virtual_clock,
)

_TOLERANCE = 0.02  # a simulated mean may be so far off the law
_NOTES = (
    "The unit of time is the least time that one worker needs for all of the work. A worker with "
    "one k-th of it takes (1 + X) / k, X exponential with mean 1 / mu; mu = 1 here.",
    "“Repeated twice” gives each of n / 2 blocks to two workers, of which the first counts.",
    "The virtual clock counts delays alone. Encoding happens once, and is not counted.",
    "Workers on Ray sleep for their delay and then multiply; the same delays, put on the virtual "
    "clock, give the time expected. What is beyond it is Ray's, and the product's own time.",
)


@dataclass(frozen=True)
class CodedComputation(Recipe):
    """Coded products against uncoded and repeated ones: mean times, and a regression with them.

    First the mean times of the law are laid beside those of a virtual clock. Then products are
    computed by real workers on Ray that sleep, and least squares are descended on the clock.

    Cost: about a minute on two cores, most of it sleep.
    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded computation.
    """

    name: ClassVar[str] = "coded-computation"
    paper: ClassVar[str] = (
        "Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, Speeding Up Distributed Machine "
        "Learning Using Codes, IEEE Transactions on Information Theory 2018 (coded computation)"
    )

    clocked_workers: tuple[int, ...] = (10, 30, 100, 300, 1000)
    """Numbers of workers on the virtual clock; even ones."""

    rounds: int | None = None
    """Rounds on the virtual clock; by default 4,000, or 20,000 in full."""

    num_workers: int = 10
    """Real workers, and those of the regression."""

    unit_s: float = 2.0
    """Seconds that stand for the unit of time where real workers sleep."""

    products: int | None = None
    """Products of the real workers; by default 12, or 60 in full; 0 starts none."""

    steps: int = 200
    """Steps of the regression."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Simulates, then lets workers sleep; there is no data to give."""
        rounds = self.rounds or (20_000 if full else 4_000)
        products = (60 if full else 12) if self.products is None else self.products
        progress("simulating workers that lag")
        clocked = [_clock(n, rounds) for n in self.clocked_workers]
        progress("measuring the conditioning of the codes")
        conditions = _conditions((10, 20, 30, 50))
        progress("descending least squares")
        regression = self._regression()
        real = None
        if products and find_spec("ray") is not None:
            progress(f"{count(products, 'product')} by {self.num_workers} workers that sleep")
            real = self._with_ray(products)
        return Findings(
            answer=_answer(clocked, real),
            findings=(
                *_clock_findings(clocked),
                _real_finding(real, self.num_workers),
                _regression_finding(regression),
            ),
            tables=(_clock_table(clocked), _condition_table(conditions)),
            plots=(_gain_plot(clocked),),
            notes=_NOTES if real is not None else (*_NOTES, "No worker slept: Ray is not there."),
            settings={
                "rounds": rounds,
                "real_products": products,
                "unit_s": self.unit_s,
                "full": full,
            },
        )

    def _with_ray(self, products: int) -> "_Real":
        """Seconds of products by workers that sleep, coded and not, and what the clock expects."""
        blocks = optimal_num_blocks(self.num_workers)
        matrix = torch.randn(1400, 400, generator=generator(0, "matrix"))
        x = torch.randn(400, generator=generator(0, "operand"))
        coded = CodedMatmul(self.num_workers, blocks).encode(matrix)
        plain = CodedMatmul(self.num_workers, self.num_workers).encode(matrix)
        lags = ShiftedExponential(self.unit_s, self.unit_s).draw(
            products, self.num_workers, generator(0, "lags")
        )
        seconds: dict[int, list[float]] = {blocks: [], self.num_workers: []}
        error = 0.0
        with RayMatmul().start(coded, plain) as session:
            for lag in lags:
                for one in (coded, plain):
                    timed = session.multiply(one, x, lag / one.code.num_blocks)
                    seconds[one.code.num_blocks].append(timed.duration_s)
                    error = max(error, _error(timed.product.value, matrix @ x))
        expected = {
            number: virtual_clock(lags / number, WaitFor(number)).duration_s.mean().item()
            for number in seconds
        }
        return _Real(
            blocks,
            statistics.mean(seconds[blocks]),
            statistics.mean(seconds[self.num_workers]),
            expected[blocks],
            expected[self.num_workers],
            error,
        )

    def _regression(self) -> "_Regression":
        """Least squares on the virtual clock: the fastest k workers against all of them."""
        digits = Digits().load().train
        assert isinstance(digits, TensorDataset)
        images, labels = digits.tensors
        matrix = images.flatten(start_dim=1).double()
        matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
        targets = labels.double() - labels.double().mean()
        blocks = optimal_num_blocks(self.num_workers)
        lags = ShiftedExponential(1.0, 1.0).draw(
            2 * self.steps, self.num_workers, generator(0, "descent")
        )
        found = [
            _descend(CodedMatmul(self.num_workers, number), matrix, targets, lags / number)
            for number in (self.num_workers, blocks)
        ]
        (plain, plain_time), (coded, coded_time) = found
        return _Regression(_error(coded, plain), plain_time, coded_time, self.steps)


@dataclass(frozen=True)
class _Clocked:
    """Mean times with so many workers: by the law, and on the virtual clock."""

    num_workers: int
    num_blocks: int
    uncoded: float
    repeated: float
    coded: float
    clocked_uncoded: float
    clocked_repeated: float
    clocked_coded: float

    @property
    def deviation(self) -> float:
        """The largest relative difference between the law and the clock."""
        return max(
            abs(self.clocked_uncoded / self.uncoded - 1),
            abs(self.clocked_repeated / self.repeated - 1),
            abs(self.clocked_coded / self.coded - 1),
        )

    @property
    def gain(self) -> float:
        """Uncoded over coded, on the clock."""
        return self.clocked_uncoded / self.clocked_coded


@dataclass(frozen=True)
class _Real:
    """Mean seconds of products by real workers."""

    num_blocks: int
    coded_s: float
    uncoded_s: float
    expected_coded_s: float
    expected_uncoded_s: float
    error: float


@dataclass(frozen=True)
class _Regression:
    """A regression by coded products beside the same by uncoded ones."""

    error: float
    uncoded_time: float
    coded_time: float
    steps: int


def _clock(num_workers: int, rounds: int) -> _Clocked:
    """The law and the clock for so many workers, with the best number of blocks."""
    blocks, half = optimal_num_blocks(num_workers), num_workers // 2
    lags = ShiftedExponential(1.0, 1.0).draw(
        rounds, num_workers, generator(0, "clock", num_workers)
    )
    first = lags.reshape(rounds, half, 2).amin(dim=2)
    return _Clocked(
        num_workers,
        blocks,
        expected_time_uncoded(num_workers),
        expected_time_repetition(num_workers, half),
        expected_time_mds(num_workers, blocks),
        _mean_time(lags, num_workers, num_workers),
        _mean_time(first, half, half),
        _mean_time(lags, blocks, blocks),
    )


def _mean_time(lags: Tensor, needed: int, num_blocks: int) -> float:
    return virtual_clock(lags / num_blocks, WaitFor(needed)).duration_s.mean().item()


def _descend(
    code: CodedMatmul, matrix: Tensor, targets: Tensor, delays: Tensor
) -> tuple[Tensor, float]:
    """Where gradient descent ends, and how long it takes on the clock."""
    problem = CodedLeastSquares.encode(code, matrix, targets)
    rounds = virtual_clock(delays, WaitFor(code.num_blocks))
    arrivals = iter(rounds.arrived)

    def times(coded: CodedMatrix, x: Tensor) -> Tensor:
        arrived, results = next(arrivals), coded.table(x)
        for worker in arrived.nonzero().flatten().tolist():
            results[worker] = coded.shards[worker] @ x
        return coded.decode(results, arrived).value

    x = torch.zeros(matrix.shape[1], dtype=matrix.dtype)
    for _ in range(len(delays) // 2):
        x -= len(targets) * problem.gradient(x, times)  # the norm of the matrix is 1
    return x, rounds.duration_s.sum().item()


def _conditions(sizes: Sequence[int]) -> list[tuple[int, int, float, float]]:
    """Workers, blocks and worst condition numbers, of both kinds of weights."""
    found = []
    for number in sizes:
        blocks = optimal_num_blocks(number)
        random, fixed = (CodedMatmul(number, blocks, kind) for kind in ("gaussian", "chebyshev"))
        found.append((number, blocks, random.worst_condition(500), fixed.worst_condition(500)))
    return found


def _clock_findings(clocked: Sequence[_Clocked]) -> tuple[Finding, ...]:
    worst = max(one.deviation for one in clocked)
    first, last = clocked[0], clocked[-1]
    decades = torch.tensor(last.num_workers / first.num_workers).log().item()
    slope = (last.gain - first.gain) / decades if decades else 0.0
    expected = 1 / optimal_time()
    return (
        Finding(
            "With an (n, k) code the mean time is (1 + (H_n - H_(n-k)) / mu) / k, without one "
            "(1 + H_n / mu) / n.",
            "the formulas",
            f"{percent(worst)} off at most, from {first.num_workers} to {last.num_workers} workers",
            "yes" if worst <= _TOLERANCE else "no",
        ),
        Finding(
            "The best code has a constant share of blocks, 1 + 1 / W(-exp(-mu - 1)).",
            f"{optimal_code_rate():.3f} for mu = 1",
            f"k / n = {last.num_blocks / last.num_workers:.3f} with {last.num_workers} workers",
            "yes" if abs(last.num_blocks / last.num_workers - optimal_code_rate()) < 0.02 else "no",
        ),
        Finding(
            "Coding gains a factor that grows like log n.",
            f"{expected:.3f} log n, for many workers",
            f"{first.gain:.2f} with {first.num_workers} workers, {last.gain:.2f} with "
            f"{last.num_workers}: {slope:.3f} log n",
            "yes" if abs(slope / expected - 1) < 0.1 else "partly",
        ),
    )


def _real_finding(real: _Real | None, num_workers: int) -> Finding:
    claim = "Real products with workers that lag take less time with a code."
    if real is None:
        return Finding(claim, NOT_QUOTED, "not measured: Ray is not there", "—")
    return Finding(
        claim,
        NOT_QUOTED,
        f"{num_workers} workers on Ray: {real.uncoded_s:.2f} s uncoded, {real.coded_s:.2f} s from "
        f"the first {real.num_blocks}: {percent(1 - real.coded_s / real.uncoded_s)} less (expected "
        f"from the same delays: {percent(1 - real.expected_coded_s / real.expected_uncoded_s)})",
        "yes" if real.coded_s < real.uncoded_s else "no",
    )


def _regression_finding(found: _Regression) -> Finding:
    return Finding(
        "Gradient descent with coded products is the same descent, in less time.",
        NOT_QUOTED,
        f"{count(found.steps, 'step')} of least squares on the digits: {found.uncoded_time:.0f} "
        f"units of time uncoded, {found.coded_time:.0f} coded; solutions differ by "
        f"{found.error:.1g}",
        "yes" if found.error < 1e-6 and found.coded_time < found.uncoded_time else "no",
    )


def _answer(clocked: Sequence[_Clocked], real: _Real | None) -> str:
    gains = ", ".join(f"{one.gain:.2f} times with {one.num_workers}" for one in clocked)
    slept = (
        f"; with real workers that sleep {real.uncoded_s / real.coded_s:.2f} times"
        if real is not None
        else ""
    )
    return f"Taking the product from the fastest workers is faster: {gains} workers{slept}."


def _clock_table(clocked: Sequence[_Clocked]) -> Table:
    return Table(
        "Mean time of a product",
        "Units of time; the law, and beside it the virtual clock.",
        (
            "workers",
            "blocks",
            "uncoded",
            "uncoded, clock",
            "repeated twice",
            "repeated, clock",
            "coded",
            "coded, clock",
            "uncoded / coded",
        ),
        tuple(
            (
                one.num_workers,
                one.num_blocks,
                one.uncoded,
                one.clocked_uncoded,
                one.repeated,
                one.clocked_repeated,
                one.coded,
                one.clocked_coded,
                one.gain,
            )
            for one in clocked
        ),
    )


def _condition_table(conditions: Sequence[tuple[int, int, float, float]]) -> Table:
    return Table(
        "Conditioning",
        "The largest condition number of the equations that decoding solves, over 500 sets of "
        "workers. Its product with 1e-16 is lost in float64.",
        ("workers", "blocks", "random orthonormal rows", "Chebyshev nodes"),
        tuple(conditions),
    )


def _gain_plot(clocked: Sequence[_Clocked]) -> Plot:
    def draw(ax: Axes) -> None:
        numbers = [one.num_workers for one in clocked]
        laws = [one.uncoded / one.coded for one in clocked]
        repeated = [one.uncoded / one.repeated for one in clocked]
        ax.plot(numbers, laws, color=COLOURS[0], label="coded, law")
        ax.plot(
            numbers, [one.gain for one in clocked], "o", color=COLOURS[0], label="virtual clock"
        )
        ax.plot(
            numbers, repeated, color=COLOURS[1], linestyle="dashed", label="repeated twice, law"
        )
        ax.set_xscale("log")
        ax.set_xlabel("workers")
        ax.set_ylabel("times faster than uncoded")
        ax.legend(loc="upper left")

    alt = "; ".join(f"{one.num_workers} workers {one.gain:.2f}" for one in clocked)
    return Plot(
        "Gain over uncoded products",
        "A straight line on this axis is a logarithm.",
        f"Times faster than uncoded, by workers: {alt}.",
        draw,
    )


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
