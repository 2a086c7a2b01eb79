"""Coded matrix products: what any k of n workers save, by the law, by the clock and with Ray."""

import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.coded_computation import CodedLeastSquares, CodedMatmul, CodedMatrix, MatmulSession
from phalanx.data import Digits
from phalanx.experiments import Cell, Record, Records, grid, load
from phalanx.randomness import generator
from phalanx.reporting.format import count, percent
from phalanx.reproduce.base import Findings, Measure, Recipe, Scope, published, report
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
from phalanx.training import Ray

_TOLERANCE = 0.02  # a simulated mean may be so far off the law
_SIZES = (10, 20, 30, 50)  # workers, where conditioning is measured
_TOLD = published("coded-computation")


@dataclass(frozen=True)
class CodedComputation(Recipe):
    """Coded products against uncoded and repeated ones: mean times, and a regression with them.

    First the mean times of the law are laid beside those of a virtual clock. Then products are
    computed by real workers on Ray that sleep, and least squares are descended on the clock.

    Cost: about a minute on two cores, most of it sleep.
    """

    name: ClassVar[str] = "coded-computation"
    paper: ClassVar[str] = _TOLD["paper"]

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

    def cells(self, scope: Scope) -> list[Cell]:
        """What is simulated."""
        rounds = {"rounds": self.rounds or (20_000 if scope.full else 4_000)}
        sizes = {"num_workers": self.num_workers, "steps": self.steps}
        clocked, conditioned = (
            {number: {"num_workers": number} for number in numbers}
            for numbers in (self.clocked_workers, _SIZES)
        )
        return [
            *grid(_clock, {"part": {"clock": {}}, "workers": clocked}, rounds),
            *grid(_condition, {"part": {"condition": {}}, "workers": conditioned}),
            *grid(_regress, {"part": {"regression": {}}}, sizes),
        ]

    def measure(self, scope: Scope, run: Measure) -> Records:
        """Simulates, then lets real workers sleep."""
        simulated = run(self.cells(scope))
        products = (60 if scope.full else 12) if self.products is None else self.products
        if not products or find_spec("ray") is None:
            return simulated
        sizes = {"num_workers": self.num_workers, "unit_s": self.unit_s, "products": products}
        return Records([*simulated, *run(grid(_sleep, {"part": {"real": {}}}, sizes), jobs=1)])

    def findings(self, found: Records, scope: Scope) -> Findings:
        """The laws, the growth of the gain, real products, and the regression."""
        clocked, (descent,) = found.where(part="clock"), found.where(part="regression")
        real = found.where(part="real")[0] if "real" in found.labels("part") else None
        workers = [one["workers"] for one in clocked]
        gains = [one["uncoded / coded"] for one in clocked]
        least, most, worst = workers[0], workers[-1], clocked.reduce("deviation", max)
        slope = (gains[-1] - gains[0]) / math.log(most / least) if most > least else 0.0
        rate, share, expected = (
            optimal_code_rate(),
            clocked[-1]["blocks"] / most,
            1 / optimal_time(),
        )
        slept = real["uncoded"] / real["coded"] if real else 0.0
        faster = (f"{gain:.2f} times with {n}" for n, gain in zip(workers, gains, strict=True))
        values = {
            "worst": percent(worst),
            "least": least,
            "most": most,
            "rate": rate,
            "share": share,
            "expected": expected,
            "gains": (gains[0], gains[-1]),
            "slope": slope,
            "times": ", ".join(faster),
            "slept": f"; with real workers that sleep {slept:.2f} times" if real else "",
            "real": _real(real, self.num_workers) if real else "not measured: Ray is not there",
            "descent": descent.values,
            "steps": count(self.steps, "step"),
        }
        holds = {
            "times": [worst <= _TOLERANCE],
            "rate": [abs(share - rate) < 0.02],
            "gain": [abs(slope / expected - 1) < 0.1, True],
            "real": [slept > 1] if real else None,
            "descent": [descent["error"] < 1e-6 and descent["coded"] < descent["uncoded"]],
        }
        lines = {
            "coded, law": [one["uncoded"] / one["coded"] for one in clocked],
            "repeated twice, law": [one["uncoded"] / one["repeated twice"] for one in clocked],
            "coded, virtual clock": gains,
        }
        gained = {name: (workers, gain) for name, gain in lines.items()}
        tables = {"times": clocked, "conditions": found.where(part="condition")}
        told = report(_TOLD, holds, values, tables, {"gain": gained})
        note = [] if real else ["No worker slept: Ray is not there."]
        return replace(told, notes=[*told.notes, *note])


def _real(real: Record, num_workers: int) -> str:
    less, expected = (
        percent(1 - real[f"coded{clock}"] / real[f"uncoded{clock}"]) for clock in ("", ", clock")
    )
    return (
        f"{num_workers} workers on Ray: {real['uncoded']:.2f} s uncoded, {real['coded']:.2f} s "
        f"from the first {real['blocks']}: {less} less (expected from the same delays: {expected})"
    )


def _clock(num_workers: int, rounds: int) -> dict[str, Any]:
    """Mean times by the law and on the virtual clock, with the best number of blocks."""
    blocks, half = optimal_num_blocks(num_workers), num_workers // 2
    draw = generator(0, "clock", num_workers)
    lags = ShiftedExponential(1.0, 1.0).draw(rounds, num_workers, draw)
    times = {
        "uncoded": expected_time_uncoded(num_workers),
        "repeated twice": expected_time_repetition(num_workers, half),
        "coded": expected_time_mds(num_workers, blocks),
        "uncoded, clock": _mean_time(lags, num_workers),
        "repeated twice, clock": _mean_time(lags.reshape(rounds, half, 2).amin(dim=2), half),
        "coded, clock": _mean_time(lags, blocks),
    }
    kinds = ("uncoded", "repeated twice", "coded")
    return {
        "blocks": blocks,
        **times,
        "uncoded / coded": times["uncoded, clock"] / times["coded, clock"],
        "deviation": max(abs(times[f"{kind}, clock"] / times[kind] - 1) for kind in kinds),
    }


def _mean_time(lags: Tensor, blocks: int) -> float:
    return virtual_clock(lags / blocks, WaitFor(blocks)).duration_s.mean().item()


def _condition(num_workers: int) -> dict[str, Any]:
    """The worst condition numbers of both kinds of weights."""
    blocks = optimal_num_blocks(num_workers)
    random, fixed = (CodedMatmul(num_workers, blocks, kind) for kind in ("gaussian", "chebyshev"))
    worst = {"random orthonormal rows": random, "Chebyshev nodes": fixed}
    return {"blocks": blocks} | {kind: code.worst_condition(500) for kind, code in worst.items()}


def _sleep(num_workers: int, unit_s: float, products: int) -> dict[str, Any]:
    """Mean seconds of products by workers that sleep, coded and not, and what the clock expects."""
    blocks = optimal_num_blocks(num_workers)
    matrix = torch.randn(1400, 400, generator=generator(0, "matrix"))
    x = torch.randn(400, generator=generator(0, "operand"))
    lags = ShiftedExponential(unit_s, unit_s).draw(products, num_workers, generator(0, "lags"))
    coded, plain = (CodedMatmul(num_workers, k).encode(matrix) for k in (blocks, num_workers))
    seconds: dict[str, list[float]] = {"coded": [], "uncoded": []}
    with MatmulSession(Ray(), coded, plain) as session:
        for lag in lags:
            for name, one in (("coded", coded), ("uncoded", plain)):
                timed = session.multiply(one, x, lag / one.code.num_blocks)
                seconds[name].append(timed.duration_s)
    means = {name: fmean(taken) for name, taken in seconds.items()}
    expected = {"coded, clock": blocks, "uncoded, clock": num_workers}
    return {"blocks": blocks, **means} | {name: _mean_time(lags, k) for name, k in expected.items()}


def _regress(num_workers: int, steps: int) -> dict[str, Any]:
    """Least squares on the virtual clock: the fastest k workers against all of them."""
    digits = load(Digits()).train
    assert isinstance(digits, TensorDataset)
    images, labels = digits.tensors
    matrix = images.flatten(start_dim=1).double()
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
    targets = labels.double() - labels.double().mean()
    lags = ShiftedExponential(1.0, 1.0).draw(2 * steps, num_workers, generator(0, "descent"))
    (plain, plain_time), (coded, coded_time) = (
        _descend(CodedMatmul(num_workers, blocks), matrix, targets, lags / blocks)
        for blocks in (num_workers, optimal_num_blocks(num_workers))
    )
    error = float((coded - plain).norm() / plain.norm())
    return {"uncoded": plain_time, "coded": coded_time, "error": error}


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
