"""Verdict of a cyclic code over floats: who is Byzantine in every explanation of the messages.

An explanation is a set of workers within the bound without whom the messages are honest ones, each
off by what rounding can do. The truth is one of them. Small lies have several; a worker is named if
all of them accuse it, and the gradient is off by at most the distance between two of them.
"""

import itertools
import math
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.coding.frequency_band import Band, CyclicAlgebra, cyclic_algebra
from phalanx.coding.locator import locate, unexplained
from phalanx.coding.projection import SHRINKS

_OUTSIZED = 1e5  # a row so many times the next one is left out, lest its rounding drown the others
_ALIKE = 2.0  # explanations whose trusted messages differ by less are judged by what they leave
_ILL = 1e10  # squares of an inverse in float64 beyond which it is not believed
_ROUNDING = 1e-14  # of the algebra here, relative to the projections
_ALL_SETS = 25_000  # sets of workers that are all judged; some 20 MB of matrices, kept
_ALL_ONCE = 500_000  # sets over which an amplification is maximised, once; some two seconds


class Verdict(NamedTuple):
    """What follows from the messages of one circle.

    Attributes:
        accused: positions of the workers that decoding does without: an explanation.
        named: those whom every explanation accuses.
        residual: what the explanation leaves unexplained, relative to the messages it trusts.
        error: by how much the sum of the partitions' gradients can be off, in any explanation.
        trusted: norm of the messages that are trusted, together.
        honest: the least that the norm of the honest messages can be, whoever they are.
    """

    accused: list[int]
    named: list[int]
    residual: float
    error: float
    trusted: float
    honest: float


class Evidence(NamedTuple):
    """The messages of one circle, as far as a verdict needs them.

    Attributes:
        algebra: of the code.
        projections: one row per worker; those of missing ones are not looked at.
        missing: positions of the missing messages; at most 2 s.
        tolerance: what rounding may do to honest messages, relative to their norm.
    """

    algebra: CyclicAlgebra
    projections: Tensor
    missing: list[int]
    tolerance: float


def judge(evidence: Evidence) -> Verdict | None:
    """The verdict; None if no set within the bound explains the messages."""
    norms = _row_norms(evidence.projections)
    present = [worker for worker in range(len(norms)) if worker not in set(evidence.missing)]
    most = (len(evidence.algebra.parity) - len(evidence.missing)) // 2
    largest = sorted(present, key=lambda worker: -norms[worker])
    refuted: list[set[int]] = []
    for count in range(min(most, len(largest) - 1), -1, -1):
        if count and norms[largest[count - 1]] <= _OUTSIZED * norms[largest[count]]:
            continue
        left_out = set(largest[:count])
        verdict = _Reading(evidence, norms, present, largest[:count], most).verdict()
        if verdict is None:
            refuted.append(left_out)
        elif left_out <= set(verdict.named):
            # Who was left out is proven Byzantine, so that all explanations were looked at.
            return None if any(one <= set(verdict.named) for one in refuted) else verdict
    return None


class _Reading:
    """One reading of the messages, some of which are left out as Byzantine from the start.

    All norms are relative to the largest message that was read.
    """

    def __init__(
        self,
        evidence: Evidence,
        norms: list[float],
        present: list[int],
        left_out: list[int],
        most: int,
    ) -> None:
        self.algebra, self.tolerance = evidence.algebra, evidence.tolerance
        self.present, self.left_out, self.most = present, left_out, most
        self.missing = evidence.missing
        self.used = [worker for worker in present if worker not in left_out]
        self.unit = max((norms[worker] for worker in self.used), default=0.0) or 1.0
        self.norms = [norm / self.unit for norm in norms]
        self.squares = torch.tensor(self.norms, dtype=torch.float64).square()
        self.computed = _ROUNDING * self.size(self.used)
        seen = evidence.projections[self.used].to(self.algebra.parity.dtype) / self.unit
        syndrome = self.algebra.parity[:, self.used] @ seen
        # A square factor F of it: F F^H is the same, which is all that norms depend on.
        self.syndrome = torch.linalg.qr(syndrome.mH, mode="r").R.mH

    def size(self, workers: list[int]) -> float:
        """Norm of the messages of these workers together."""
        return math.hypot(*(self.norms[worker] for worker in workers))

    def allowed(self, sets: Tensor) -> Tensor:
        """What the messages without those of each set, and of those left out, may disagree by."""
        total = self.squares[self.used].sum()
        trusted = (total - self.squares[sets].sum(dim=1)).clamp_min(0).sqrt()
        bound: Tensor = self.tolerance * trusted + self.computed
        return bound.clamp_min(torch.finfo(torch.float64).tiny)

    def slack(self, named: Collection[int]) -> float:
        """What the honest messages, none of which is of the named workers, may disagree by."""
        return self.tolerance * self.size([w for w in self.used if w not in named]) + self.computed

    def verdict(self) -> Verdict | None:
        """The verdict of those who leave these workers out; None if nothing else is explained."""
        fixed = sorted(self.missing + self.left_out)
        count = self.most - len(self.left_out)
        if math.comb(len(self.used), count) <= _ALL_SETS:
            found = self._of_all(_hypotheses(self.algebra.key, tuple(fixed), count), fixed)
        else:
            found = self._of_one(fixed, count)
        if found is None:
            return None
        accused, named, error = found
        trusted = self.size([worker for worker in self.used if worker not in accused])
        residual = self.left(accused) / trusted if trusted > 0 else 0.0
        others = sorted(self.norms[worker] for worker in self.present if worker not in named)
        honest = math.hypot(*others[: len(others) - (self.most - len(named))])
        error, trusted, honest = (x * self.unit for x in (error, trusted, honest))
        return Verdict(accused, named, residual, error, trusted, honest)

    def left(self, accused: list[int]) -> float:
        """What these workers leave unexplained."""
        columns = torch.tensor([self.missing + accused]).long()
        return unexplained(self.algebra, self.syndrome, columns).item()

    def _of_all(
        self, hypotheses: "_Hypotheses", fixed: list[int]
    ) -> tuple[list[int], list[int], float] | None:
        """Accused, named and error, from all sets of as many workers as may be Byzantine.

        A smaller explanation is part of some of them, and decodes to what they do, up to rounding.
        """
        sets, factor = hypotheses.sets, self.syndrome
        possible = torch.ones(len(sets), dtype=torch.bool)
        rest: list[int] = []
        named: list[int] = []
        slack = self.slack(named)
        trusted = self.allowed(sets)
        if self.left(self.left_out) > slack or slack > _ALIKE * trusted.min():
            left = (hypotheses.complements.mH @ factor).flatten(1).norm(dim=1)
            while True:
                possible = left <= slack
                if not possible.any():
                    return None
                named = _in_all(sets[possible])
                # Whom every explanation accuses, none trusts: rounding is that of the others.
                if self.slack(named) == slack:
                    break
                slack = self.slack(named)
            # Of explanations that trust messages of different size, one that trusts no large ones.
            small = trusted <= _ALIKE * trusted[possible].min()
            rest = sets[torch.where(possible & small, left / trusted, math.inf).argmin()].tolist()
        accused = sorted(self.left_out + rest)
        if self.left_out:
            named = sorted({*named, *self._proven(accused)})
        ours = _shift(self.algebra, tuple(sorted(self.missing + accused)))
        apart = ((hypotheses.shifts[possible] - ours) @ factor).norm(dim=1)
        error = SHRINKS * apart + hypotheses.lengths[possible] * slack
        return accused, named, error.max().item()

    def _of_one(self, fixed: list[int], count: int) -> tuple[list[int], list[int], float] | None:
        """Accused, named and error, from one set that was found and bounds on all others.

        The sums that two explanations decode to differ by at most their errors' bound, see
        `_proven`, times the norm of the shortest combination that does without either's workers.
        """
        rest = locate(self.algebra, self.syndrome, self.used, fixed, count, self.allowed)
        if rest is None:
            return None
        accused = sorted(self.left_out + rest)
        named = self._proven(accused)
        _, combination = _bounds(
            self.algebra, tuple(sorted(accused + self.missing)), self.most - len(named)
        )
        return accused, named, (SHRINKS * self.left(accused) + self.slack(named)) * combination

    def _proven(self, accused: list[int]) -> list[int]:
        """Those of the workers of one explanation whom all others accuse, too.

        For two explanations T and T' of the syndrome, and the errors E, E' that they see in the
        messages, `|H (E - E')| <= r + r'` for the checks H, so that for U = T, T' and the missing
            `|E_w - E'_w| <= (r + r') |e_w^T pinv(H_U)|`.
        If T' lacks m workers of T, then `E'_w = 0` for these m, and at most m, and as many as T is
        below the bound, are new in it. So m workers may be in doubt only if m errors are small.
        """
        sizes = self._corrections(accused)
        fixed = tuple(sorted(accused + self.missing))
        trusted = [worker for worker in self.present if worker not in accused]
        largest = sorted(accused, key=lambda worker: -self.norms[worker])
        left = self.left(accused) + self.computed
        doubtful: set[int] = set()
        for number in range(1, len(accused) + 1):
            rows, _ = _bounds(self.algebra, fixed, self.most - len(accused) + number)
            apart = left + self.tolerance * self.size(trusted + largest[:number])
            small = {w for w in accused if not sizes[w] > apart * rows[w]}
            if len(small) >= number:
                doubtful |= small
        return [worker for worker in accused if worker not in doubtful]

    def _corrections(self, accused: list[int]) -> dict[int, float]:
        """Norms of the errors that explain the syndrome, in the messages of these workers."""
        columns = accused + self.missing
        errors = torch.linalg.pinv(self.algebra.parity[:, columns]) @ self.syndrome
        sizes = dict(zip(accused, errors.norm(dim=1).tolist(), strict=False))
        # The message of one left out was taken for zero: its error is what it is off from that.
        return sizes | {w: self.norms[w] - sizes[w] for w in self.left_out}


class _Hypotheses(NamedTuple):
    """All sets of so many workers who may be Byzantine, beside those who are out anyway.

    Attributes:
        sets: `(sets, count)`.
        complements: `(sets, 2 s, _)`, what the columns of each set leave of the syndrome.
        shifts: `(sets, 2 s)`; times the syndrome, what the sum of the partitions changes by if the
            set is left out.
        lengths: `(sets,)`, norms of the combinations that decode without the set.
    """

    sets: Tensor
    complements: Tensor
    shifts: Tensor
    lengths: Tensor


@lru_cache(maxsize=16)
def _hypotheses(key: tuple[int, int, Band], fixed: tuple[int, ...], count: int) -> _Hypotheses:
    algebra = cyclic_algebra(*key)
    others = [worker for worker in range(key[0]) if worker not in fixed]
    chosen = list(itertools.combinations(others, count))
    sets = torch.tensor(chosen).view(len(chosen), count).long()
    columns = torch.cat([sets, torch.tensor(fixed).long().expand(len(sets), -1)], dim=1)
    frames = torch.linalg.qr(algebra.parity[:, columns].permute(1, 0, 2), mode="complete").Q
    shifts, lengths = _shifts(algebra, columns)
    return _Hypotheses(sets, frames[:, :, columns.shape[1] :].contiguous(), shifts, lengths)


def _row_norms(rows: Tensor) -> list[float]:
    """Euclidean norms, without overflow."""
    largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    norms: list[float] = (largest[:, 0] * (rows / largest).norm(dim=1)).tolist()
    return norms


def _in_all(sets: Tensor) -> list[int]:
    """Who is in every one of the sets, `(sets, count)`; at least one is given."""
    values, times = sets.unique(return_counts=True)
    found: list[int] = values[times == len(sets)].tolist()
    return found


@lru_cache(maxsize=4096)
def _shift(algebra: CyclicAlgebra, left_out: tuple[int, ...]) -> Tensor:
    """The shift of one set; see `_Hypotheses`."""
    return _shifts(algebra, torch.tensor([left_out]).long())[0][0]


def _shifts(algebra: CyclicAlgebra, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest `x` such that `combination(all) + x @ parity` is zero on each set."""
    shares = algebra.combination(list(range(len(algebra.nodes)))).to(algebra.parity.dtype)
    blocks = algebra.parity[:, columns].permute(1, 2, 0)
    shifts = -(torch.linalg.pinv(blocks) @ shares[columns][:, :, None])[:, :, 0]
    lengths = (shares.norm() ** 2 + shifts.norm(dim=1) ** 2).sqrt()
    return shifts, lengths


@lru_cache(maxsize=4096)
def _bounds(algebra: CyclicAlgebra, fixed: tuple[int, ...], extra: int) -> tuple[Tensor, float]:
    """Upper bounds, over all sets U of `fixed` and so many others, on what U amplifies.

    Returns:
        For each worker of `fixed`, of the norm of its row of `pinv(H_U)`; and of the norm of the
        combination that does without U. The largest ones where there are few sets.
    """
    length = len(algebra.nodes)
    extra = min(extra, len(algebra.parity) - len(fixed), length - len(fixed))
    shares = algebra.combination(list(range(length)))
    if not fixed and not extra:
        return torch.zeros(length, dtype=torch.float64), shares.norm().item()
    rows, added = torch.zeros(length, dtype=torch.float64), math.inf
    if math.comb(length - len(fixed), extra) <= (_ALL_SETS if fixed else _ALL_ONCE):
        rows, added = _largest(algebra, fixed, extra, shares)
    if added == math.inf:
        rows = _row_bounds(algebra.nodes, fixed, extra)
        sizes = (shares.abs() * rows).tolist()
        others = sorted((sizes[w] for w in range(length) if w not in fixed), reverse=True)
        added = sum(sizes[w] for w in fixed) + sum(others[:extra])
    return rows, math.hypot(shares.norm().item(), added)


def _largest(
    algebra: CyclicAlgebra, fixed: tuple[int, ...], extra: int, shares: Tensor
) -> tuple[Tensor, float]:
    """What `_bounds` returns, over all sets one by one; infinite where an inverse loses digits."""
    products = (algebra.parity.mH @ algebra.parity).conj()
    shares = shares.to(products.dtype)
    others = [worker for worker in range(len(products)) if worker not in fixed]
    rows = torch.zeros(len(products), dtype=torch.float64)
    added = 0.0
    sets = itertools.combinations(others, extra)
    while chunk := list(itertools.islice(sets, 20_000)):
        columns = torch.tensor([[*fixed, *rest] for rest in chunk])
        inverse = torch.linalg.inv_ex(products[columns[:, :, None], columns[:, None, :]])[0]
        used = shares[columns]
        sums = (used.conj()[:, None, :] @ inverse @ used[:, :, None]).real
        squares = inverse.diagonal(dim1=1, dim2=2).real
        if not (float(squares.max()) < _ILL and float(squares.min()) > 0):
            return rows, math.inf
        seen = squares[:, : len(fixed)].amax(dim=0).sqrt()
        rows[list(fixed)] = torch.maximum(rows[list(fixed)], seen)
        added = max(added, math.sqrt(max(sums.max().item(), 0.0)))
    return rows, added


def _row_bounds(nodes: Tensor, fixed: tuple[int, ...], extra: int) -> Tensor:
    """Upper bounds of each worker's row norm: `sqrt(length) |q| / prod |z_w - z_u|`.

    Here u are the others of U, the nearest there are. The polynomial q with roots z_u is orthogonal
    to their columns, not to that of w; the norm |q| of its coefficients is at most that of binomial
    ones, and at most those of its factors multiplied.
    """
    length = len(nodes)
    distances = (nodes[:, None] - nodes[None, :]).abs()
    bounds = []
    for worker in range(length):
        held = [other for other in fixed if other != worker]
        free = [u for u in range(length) if u != worker and u not in held]
        number = max(len(fixed) + extra - 1 - len(held), 0)
        nearest = distances[worker, free].sort().values[:number]
        roots = torch.ones(1, dtype=nodes.dtype)
        for root in nodes[held]:
            zero = roots.new_zeros(1)
            roots = torch.cat([roots, zero]) - root * torch.cat([zero, roots])
        size = min(
            math.sqrt(math.comb(2 * (len(held) + number), len(held) + number)),
            roots.norm().item() * 2**number,
            roots.abs().sum().item() * math.sqrt(math.comb(2 * number, number)),
        )
        bounds.append(math.sqrt(length) * size / (distances[worker, held].prod() * nearest.prod()))
    return torch.stack(bounds)
