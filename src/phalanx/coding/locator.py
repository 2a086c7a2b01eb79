"""Search for sets of Byzantine workers that explain the syndrome of a cyclic code.

The syndrome is a sum of one geometric sequence per Byzantine worker. Hence a linear recurrence with
these as its roots (Prony's method) proposes them; but in floating point, with Byzantine workers
that sit side by side and agree, its answer is only a proposal. The judge is how much of the
syndrome a set leaves unexplained. Where there are few enough sets, all are judged; elsewhere
Prony's set and all runs of neighbours are, of every second or third one too, the best are improved
by exchanging one worker at a time, and only if that leaves too much, all are.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from phalanx.coding.frequency_band import CyclicAlgebra

_AT_ONCE = 2000  # sets that are judged without a proposal; each costs a QR of a 2s x s matrix
_AT_MOST = 3_000_000  # sets that are judged one by one if nothing else helps; half a minute
_STRIDES = (1, 2, 3)  # of the runs that are proposed: where lies hide best from the checks

Allowed = Callable[[Tensor], Tensor]
"""From sets of accused workers, `(sets, count)`, to what they may leave, `(sets,)`, above 0."""


def locate(
    algebra: CyclicAlgebra,
    syndrome: Complex[Tensor, "parity _"],
    present: list[int],
    excused: list[int],
    most: int,
    allowed: Allowed,
) -> list[int] | None:
    """A smallest set of workers that explains the syndrome; None if none was found.

    Exhaustive, so that none exists if none was found, while there are at most 3 million sets.

    Args:
        algebra: of the code.
        syndrome: `algebra.parity @ messages`, or a factor of it.
        present: positions that may be accused.
        excused: positions whose part of the syndrome is explained anyway.
        most: how many may be accused.
        allowed: what a set may leave unexplained.

    Source: Chen et al., "DRACO", ICML 2018, section 4.2, for one to `s` Byzantine workers by a
    recurrence; the joint use of all coordinates, erasures, and the residual as judge are this
    package's.
    """
    judge = _Judge(algebra, syndrome, excused, allowed)
    for count in range(most + 1):
        for accused in _proposals(judge, present, count):
            if judge.excess(torch.tensor([accused]).view(1, len(accused))).item() <= 1:
                return sorted(accused)
    for count in range(most + 1):
        if _AT_ONCE < math.comb(len(present), count) <= _AT_MOST:
            accused, excess = judge.best(itertools.combinations(present, count))
            if excess <= 1:
                return sorted(accused)
    return None


def unexplained(
    algebra: CyclicAlgebra,
    syndrome: Complex[Tensor, "parity _"],
    sets: Tensor,
) -> Float[Tensor, " sets"]:
    """Norm of what is left of the syndrome beside the span of the columns of each set."""
    if sets.shape[1] == 0:
        everything: Tensor = syndrome.norm()
        return everything.expand(len(sets))
    frame = torch.linalg.qr(algebra.parity[:, sets].permute(1, 0, 2)).Q
    rest = syndrome - frame @ (frame.mH @ syndrome)
    norms: Tensor = rest.flatten(1).norm(dim=1)
    return norms


class _Judge:
    """Sets of accused workers, by what they leave unexplained beyond what is allowed."""

    def __init__(
        self, algebra: CyclicAlgebra, syndrome: Tensor, excused: list[int], allowed: Allowed
    ) -> None:
        self.algebra, self.syndrome = algebra, syndrome
        self.excused, self.allowed = excused, allowed

    def excess(self, sets: Tensor) -> Tensor:
        """What each set leaves / what it may leave; an explanation is at most 1."""
        columns = torch.cat([sets.long(), torch.tensor([self.excused] * len(sets)).long()], dim=1)
        left = unexplained(self.algebra, self.syndrome, columns)
        return left / self.allowed(sets.long())

    def best(self, sets: Iterator[tuple[int, ...]]) -> tuple[list[int], float]:
        """The set of least excess, and its excess."""
        accused: list[int] = []
        least = math.inf
        while chunk := list(itertools.islice(sets, 20_000)):
            excess = self.excess(torch.tensor(chunk).view(len(chunk), len(chunk[0])))
            index = int(excess.argmin())
            if excess[index] < least:
                accused, least = list(chunk[index]), excess[index].item()
        return accused, least


def _proposals(judge: _Judge, present: list[int], count: int) -> Iterator[list[int]]:
    """Sets of `count` workers that may be the Byzantine ones: a few, the most likely."""
    if math.comb(len(present), count) <= _AT_ONCE:
        yield judge.best(itertools.combinations(present, count))[0]
        return
    yield _exchange(judge, present, _prony(judge, present, count))
    for stride in _STRIDES:
        around = present * (stride + 1)
        runs = (
            tuple(around[start : start + stride * count : stride]) for start in range(len(present))
        )
        yield _exchange(
            judge, present, judge.best(run for run in runs if len(set(run)) == count)[0]
        )


def _prony(judge: _Judge, present: list[int], count: int) -> list[int]:
    """The workers nearest to the roots of the shortest recurrence that the syndrome obeys."""
    algebra, syndrome = judge.algebra, judge.syndrome
    # A factor (1 - z_t S) in the shift S removes the sequence of the excused worker t.
    for worker in judge.excused:
        syndrome = syndrome[1:] - algebra.nodes[worker] * syndrome[:-1]
    hankel = torch.cat(list(syndrome.unfold(0, count + 1, 1)))
    recurrence = torch.linalg.svd(hankel / hankel.abs().max().clamp_min(1e-300)).Vh[-1].conj()
    powers = algebra.nodes[present, None] ** torch.arange(count + 1)
    order = (powers @ recurrence).abs().argsort()[:count]
    return [present[position] for position in order.tolist()]


def _exchange(judge: _Judge, present: list[int], accused: list[int]) -> list[int]:
    """Exchanges one accused for another worker as long as that explains more."""
    least = judge.excess(torch.tensor([accused])).item()
    while least > 1:
        others = [worker for worker in present if worker not in accused]
        sets = (
            (*accused[:position], *accused[position + 1 :], other)
            for position in range(len(accused))
            for other in others
        )
        best, excess = judge.best(sets)
        if excess >= least * (1 - 1e-6):
            break
        accused, least = best, excess
    return accused
