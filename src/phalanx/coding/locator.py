"""Locator of Byzantine workers in a cyclic code, from projections of the messages.

What the parity checks see of the projections (the syndrome) is a sum of one geometric sequence per
Byzantine worker. Hence a linear recurrence with these as its roots (Prony's method) proposes them;
but in floating point, with Byzantine workers that sit side by side and agree, its answer is only a
proposal. The judge is the residual: how much of the syndrome the proposed set cannot explain. Where
there are few enough sets, all are judged; elsewhere Prony's set and all runs of neighbours are, and
the best is improved by exchanging one worker at a time.
"""

import itertools
import math
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from phalanx.coding.frequency_band import CyclicAlgebra

_MAX_SETS = 2000  # sets that are judged one by one; each costs a QR of a 2s x s matrix


class Located(NamedTuple):
    """Positions of the Byzantine workers, and the share of the projections that stays unexplained.

    `byzantine` is None if no set within the bound explains what was seen.
    """

    byzantine: list[int] | None
    residual: float


def locate(
    algebra: CyclicAlgebra,
    projections: Float[Tensor, "length projections"] | Complex[Tensor, "length projections"],
    erased: list[int],
    tolerance: float,
) -> Located:
    """The smallest set of Byzantine workers that explains the projections, given who is missing.

    Args:
        algebra: of the code.
        projections: one row per worker; rows of the missing ones are ignored.
        erased: positions of the missing workers.
        tolerance: largest residual, relative to the projections of the trusted workers, that passes
            for rounding.

    Source: Chen et al., "DRACO", ICML 2018, section 4.2, for one to `s` Byzantine workers by a
    recurrence; the joint use of several projections, erasures, and the residual as judge are this
    package's.
    """
    present = [worker for worker in range(len(projections)) if worker not in set(erased)]
    outsized = _outsized(projections, present)
    best = math.inf
    for count in range((len(algebra.parity) - len(erased)) // 2 + 1):
        for number in reversed(range(min(count, len(outsized)) + 1)):
            left_out = outsized[:number]
            for rest in _proposals(algebra, projections, erased + left_out, count - number):
                found = sorted(left_out + rest)
                trusted = [worker for worker in present if worker not in found]
                residual = _disagreement(algebra, projections[trusted], trusted)
                if residual <= tolerance:
                    return Located(found, residual)
                best = min(best, residual)
    return Located(None, best)


def _outsized(projections: Tensor, present: list[int]) -> list[int]:
    """Workers that are surely Byzantine, if anybody is: the largest rows, the very largest first.

    A row 1e30 times its neighbours drowns the others in the rounding of float64, so they are sought
    without it. It counts as Byzantine: a mere erasure would use up the checks on all others.
    """
    sizes = projections.abs().amax(dim=1)
    ordinary = sizes[present].median().item() if present else 0.0
    largest = [worker for worker in present if sizes[worker].item() > 1e5 * ordinary]
    return sorted(largest, key=lambda worker: -sizes[worker].item())


def _disagreement(algebra: CyclicAlgebra, projections: Tensor, trusted: list[int]) -> float:
    """Share of the trusted workers' projections that no honest messages could have produced."""
    basis = algebra.basis[trusted]
    if len(trusted) <= basis.shape[1] or not projections.any():
        return 0.0
    frame = torch.linalg.qr(basis).Q
    values = projections.to(frame.dtype)
    unexplained = (values - frame @ (frame.mH @ values)).norm() / values.norm()
    return float(unexplained)


def _proposals(
    algebra: CyclicAlgebra, projections: Tensor, left_out: list[int], count: int
) -> list[list[int]]:
    """Sets of `count` workers that may be the other Byzantine ones: one or two, the most likely."""
    if count == 0:
        return [[]]
    arrived = [worker for worker in range(len(projections)) if worker not in set(left_out)]
    seen = projections.to(torch.complex128, copy=True)
    seen[left_out] = 0
    syndrome, erased = algebra.parity @ seen, left_out
    if math.comb(len(arrived), count) <= _MAX_SETS:
        sets = [list(chosen) for chosen in itertools.combinations(arrived, count)]
        return [sets[_judge(algebra, syndrome, sets, erased)[0]]]
    prony = _prony(algebra, syndrome, arrived, erased, count)
    runs = [sorted((arrived * 2)[start : start + count]) for start in range(len(arrived))]
    best_run = runs[_judge(algebra, syndrome, runs, erased)[0]]
    return [_exchange(algebra, syndrome, arrived, erased, start) for start in (prony, best_run)]


def _prony(
    algebra: CyclicAlgebra, syndrome: Tensor, arrived: list[int], erased: list[int], count: int
) -> list[int]:
    """The workers nearest to the roots of the shortest recurrence that the syndrome obeys."""
    # A factor (1 - z_t S) in the shift S removes the sequence of the missing worker t.
    for worker in erased:
        syndrome = syndrome[1:] - algebra.nodes[worker] * syndrome[:-1]
    hankel = torch.cat(list(syndrome.unfold(0, count + 1, 1)))
    locator = torch.linalg.svd(hankel / hankel.abs().max().clamp_min(1e-300)).Vh[-1].conj()
    powers = algebra.nodes[arrived, None] ** torch.arange(count + 1)
    order = (powers @ locator).abs().argsort()[:count]
    return [arrived[position] for position in order.tolist()]


def _exchange(
    algebra: CyclicAlgebra,
    syndrome: Tensor,
    arrived: list[int],
    erased: list[int],
    accused: list[int],
) -> list[int]:
    """Exchanges one suspect for one trusted worker as long as that explains more."""
    best = _unexplained(algebra, syndrome, torch.tensor([accused + erased])).item()
    while True:
        others = [worker for worker in arrived if worker not in accused]
        sets = [
            [*accused[:position], *accused[position + 1 :], other]
            for position in range(len(accused))
            for other in others
        ]
        if not sets:
            return accused
        index, unexplained = _judge(algebra, syndrome, sets, erased)
        if unexplained >= best * (1 - 1e-6):
            return accused
        accused, best = sets[index], unexplained


def _judge(
    algebra: CyclicAlgebra, syndrome: Tensor, sets: list[list[int]], erased: list[int]
) -> tuple[int, float]:
    """Which of the sets explains most of the syndrome, and what it leaves."""
    columns = torch.tensor([[*chosen, *erased] for chosen in sets])
    unexplained = _unexplained(algebra, syndrome, columns)
    index = int(unexplained.argmin())
    return index, unexplained[index].item()


def _unexplained(algebra: CyclicAlgebra, syndrome: Tensor, columns: Tensor) -> Tensor:
    """Norm of what is left of the syndrome beside the span of each set of workers, `(sets,)`."""
    if columns.shape[1] == 0:
        everything: Tensor = syndrome.norm()
        return everything.expand(len(columns))
    frame = torch.linalg.qr(algebra.parity[:, columns].permute(1, 0, 2)).Q
    rest = syndrome - frame @ (frame.mH @ syndrome)
    norms: Tensor = rest.flatten(1).norm(dim=1)
    return norms
