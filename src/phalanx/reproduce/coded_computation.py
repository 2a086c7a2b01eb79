"""Coded matrix products: what any k of n workers save, by the law, by the clock and with Ray."""

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.coded_computation import CodedLeastSquares, CodedMatmul, CodedMatrix, MatmulSession
from phalanx.data import Digits
from phalanx.experiments import Cell, Records, grid, load
from phalanx.randomness import generator
from phalanx.reporting.format import count, percent
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized
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


@dataclass(frozen=True)
class CodedComputation(Recipe):
    """Coded products against uncoded and repeated ones: mean times, and a regression with them.

    First the mean times of the law are laid beside those of a virtual clock. Then products are
    computed by real workers on Ray that sleep, and least squares are descended on the clock.
    """

    name: ClassVar[str] = "coded-computation"

    clocked_workers: tuple[int, ...] = (10, 30, 100, 300, 1000)
    """Numbers of workers on the virtual clock; even ones."""
    rounds: int = sized(2_000, 4_000, 20_000)
    """Rounds on the virtual clock."""
    num_workers: int = 10
    """Real workers, and those of the regression."""
    unit_s: float = 2.0
    """Seconds that stand for the unit of time where real workers sleep."""
    products: int = sized(0, 12, 60)
    """Products of the real workers, on Ray; 0 starts none."""
    steps: int = 200
    """Steps of the regression."""

    def cells(self, scope: Scope) -> list[Cell]:
        """What is simulated, then real workers that sleep."""
        sizes, rounds = {"num_workers": self.num_workers}, {"rounds": self.rounds}
        real = sizes | {"unit_s": self.unit_s, "products": self.products}
        asleep = grid(_sleep, {"part": {"real": {}}}, real, alone=True) if self.products else []
        return [
            *grid(_clock, {"part": {"clock": {}}, "workers": self.clocked_workers}, rounds),
            *grid(_condition, {"part": {"condition": {}}, "workers": _SIZES}),
            *grid(_regress, {"part": {"regression": {}}}, sizes | {"steps": self.steps}),
            *asleep,
        ]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """The laws, the growth of the gain, real products, and the regression."""
        clocked, (descent,) = found.where(part="clock"), found.where(part="regression")
        real = found.where(part="real")[0] if "real" in found.labels("part") else None
        workers = [one["workers"] for one in clocked]
        gains = [one["uncoded / coded"] for one in clocked]
        least, most, worst = workers[0], workers[-1], clocked.reduce("deviation", max)
        slope = (gains[-1] - gains[0]) / math.log(most / least) if most > least else 0.0
        rate, expected = optimal_code_rate(), 1 / optimal_time()
        share = clocked[-1]["blocks"] / most
        slept = real["uncoded"] / real["coded"] if real else 0.0
        less = [
            percent(1 - real[f"coded{x}"] / real[f"uncoded{x}"]) for x in ("", ", clock") if real
        ]
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
            "real": self.told["real" if real else "no real"].format(
                n=self.num_workers, real=real, less=less
            ),
            "descent": descent,
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
        tables = {"times": clocked, "conditions": found.where(part="condition")}
        plots = {"gain": {name: (workers, gain) for name, gain in lines.items()}}
        return report(self.told, holds, values, tables, plots, answer="answer")


def _clock(workers: int, rounds: int) -> dict[str, Any]:
    """Mean times by the law and on the virtual clock, with the best number of blocks."""
    blocks, half = optimal_num_blocks(workers), workers // 2
    source = generator(0, "clock", workers)
    lags = ShiftedExponential(1.0, 1.0).draw(rounds, workers, source)
    times = {
        "uncoded": expected_time_uncoded(workers),
        "repeated twice": expected_time_repetition(workers, half),
        "coded": expected_time_mds(workers, blocks),
        "uncoded, clock": _mean_time(lags, workers),
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


def _condition(workers: int) -> dict[str, Any]:
    """The worst condition numbers of both kinds of weights."""
    blocks = optimal_num_blocks(workers)
    random, fixed = (CodedMatmul(workers, blocks, kind) for kind in ("gaussian", "chebyshev"))
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
