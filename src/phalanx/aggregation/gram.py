"""The one pass over the messages that every rule of the geometric kind needs.

Krum, the geometric median and their kin ask only how far the messages lie from one another. All of
that stands in the Gram matrix of the messages: `workers x workers` numbers, however long the
messages are. What costs time is to fill it once at the speed of memory and without cancellation.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.passes import Shard, finite_rows, whole, working_dtype

_BLOCK = 2048  # columns of one product: short enough for float32 sums, long enough for the kernel
_BLOCKS_IN_PLACE = 64  # products per call where the messages are read as they lie
_BLOCKS_COPIED = 8  # products per call where a block is first converted or centred
_SMALL = 1 << 16  # numbers below which float64 costs nothing that anybody would notice
_MAX_PASSES = 5


class Geometry(NamedTuple):
    """How some messages lie to one another.

    Attributes:
        gram: `(rows, rows)` float64 in main memory, inner products of the rows less one common
            vector. Which vector does not matter to a rule whose weights sum to one. A row beyond
            the range of float64 has infinities and NaN in its own row and column only.
        num_points: rows at the end that are no messages, but points that were measured along:
            the origin if something clips, then the centre if the rule has one.
    """

    gram: Float[Tensor, "rows rows"]
    num_points: int = 0

    @property
    def num_messages(self) -> int:
        """Rows that are messages, or mixtures of them."""
        return len(self.gram) - self.num_points

    def squared_distances(self) -> Float[Tensor, "rows rows"]:
        """Squared distance of every pair; infinite where it is beyond the range of float64."""
        norms = self.gram.diagonal()
        # Symmetric to the bit, so that ties between pairs stay ties.
        products = self.gram + self.gram.T
        squared = (norms[:, None] + norms[None, :] - products).clamp(min=0)
        return squared.nan_to_num(nan=torch.inf, posinf=torch.inf).fill_diagonal_(0)

    def reached(self) -> Bool[Tensor, " rows"]:
        """Which rows lie within the range of float64."""
        return torch.isfinite(self.gram.diagonal())

    def reached_gram(self) -> Float[Tensor, "rows rows"]:
        """The Gram matrix with zeros for the rows beyond the range of float64."""
        reached = self.reached()
        return self.gram.where(reached[:, None] & reached, 0.0)

    def with_points(self, num_points: int) -> "Geometry":
        """The messages and the last few points alone."""
        kept = torch.ones(len(self.gram), dtype=torch.bool)
        kept[self.num_messages : len(kept) - num_points] = False
        return Geometry(self.gram[kept][:, kept], num_points)

    def mixed(
        self, matrix: Float[Tensor, "mixtures messages"], *, from_origin: bool = False
    ) -> "Geometry":
        """How mixtures of the messages lie to one another, and to the points as they were.

        Args:
            matrix: the weights of the messages in every mixture; rows sum to one.
            from_origin: rows need not sum to one: what they lack belongs to the first point.
        """
        whole = torch.eye(len(matrix) + self.num_points, len(self.gram), dtype=torch.float64)
        whole = whole.roll(self.num_messages - len(matrix), dims=1)
        whole[: len(matrix)] = 0
        whole[: len(matrix), : self.num_messages] = matrix
        if from_origin:
            whole[: len(matrix), self.num_messages] = 1 - matrix.sum(dim=1)
        gram = whole @ self.reached_gram() @ whole.T
        lost = (whole[:, ~self.reached()] != 0).any(dim=1)
        gram[lost], gram[:, lost] = torch.inf, torch.inf
        return Geometry(gram, self.num_points)


def partial_gram(
    rows: Float[Tensor, "workers columns"],
    reference: int | None = None,
    dtype: torch.dtype | None = None,
    points: Float[Tensor, "points columns"] | None = None,
) -> Float[Tensor, "all all"]:
    """Inner products of the rows less the reference row, over the columns given.

    Gram matrices of shards of the columns add up to that of the whole; shards may even differ in
    their reference, because any common vector will do.

    Args:
        rows: the messages, or a shard of their columns.
        reference: the row to subtract from all; the origin if None, which saves a copy.
        dtype: what the products are calculated in; float64, or by default float32 for float32 and
            narrower. Sums over blocks are float64 always.
        points: further rows, in the dtype and on the device of the messages, that come last in the
            matrix; the messages are not copied for their sake.

    Returns:
        float64, on the device of the rows. A row that is not finite, or whose products overflow,
        shows as a diagonal entry that is not finite, and spoils only its own row and column.

    Cost: `workers^2 columns` multiply-adds; one pass over memory; a buffer of 16 384 columns where
    the rows have to be centred or converted.
    """
    dtype = dtype or working_dtype(rows.dtype)
    num_workers, num_columns = rows.shape
    size = num_workers + (0 if points is None else len(points))
    total = torch.zeros(size, size, dtype=torch.float64, device=rows.device)
    in_place = reference is None and rows.dtype == dtype
    width = _BLOCK * (_BLOCKS_IN_PLACE if in_place else _BLOCKS_COPIED)
    buffer = rows.new_empty(num_workers, 0 if in_place else min(width, num_columns), dtype=dtype)
    for start in range(0, num_columns, width):
        columns = rows[:, start : start + width]
        further = None if points is None else points[:, start : start + width].to(dtype)
        if further is not None and reference is not None:
            further = further - columns[reference].to(dtype)
        if not in_place:
            columns = _centred(columns, reference, buffer[:, : columns.shape[1]])
        total[:num_workers, :num_workers] += _products(columns, columns)
        if further is not None:
            across = _products(columns, further)
            total[:num_workers, num_workers:] += across
            total[num_workers:, :num_workers] += across.T
            total[num_workers:, num_workers:] += _products(further, further)
    return total


def measure(
    rows: Float[Tensor, "workers dim"],
    points: Float[Tensor, "points dim"] | None = None,
    shard: Shard | None = None,
) -> tuple[Geometry, Bool[Tensor, " workers"]]:
    """The geometry of the finite rows and of points, if given, and which rows are finite.

    The reference that is subtracted must lie among the messages, or else their distances drown in
    the rounding of their norms. A sample of the columns proposes it; the Gram matrix itself shows
    whether that was good, and if not (whoever sent it saw to it that it looks well only on the
    sample) names a better one for another pass. Rows that are not finite show on the diagonal, and
    only rows that do are looked at; products beyond the range of float32 make a float64 pass.

    Of a shard of the columns it gives the geometry of the whole messages: Gram matrices add up, and
    all that is decided here is decided on their sums.

    Cost: one pass, as a rule; at most five, under attack. Messages with a common offset far above
    their spread must be centred block by block, which makes the pass about twice as long.

    Float32 products rely on torch's default, `torch.set_float32_matmul_precision("highest")`: the
    lower settings (TF32, bfloat16) leave too few digits.
    """
    reference, finite = None, torch.ones(len(rows), dtype=torch.bool)
    if shard is None:  # else a look at a sample would cost as much as it may save: a meeting of all
        shard = whole(rows)
        sampled = partial_gram(_sample(rows), dtype=torch.float64).cpu()
        reference = _reference(sampled, finite, None)
    small = len(rows) * shard.dim <= _SMALL
    dtype = torch.float64 if small else working_dtype(rows.dtype)
    for _ in range(_MAX_PASSES):
        gram = shard.add_up(partial_gram(rows, reference, dtype, points)).cpu()
        messages = gram[: len(rows), : len(rows)]
        norms = gram.diagonal()
        odd = finite & ~torch.isfinite(norms[: len(rows)])
        if odd.any():
            finite &= ~shard.anywhere(~finite_rows(rows, odd))
        if reference is not None and not finite[reference]:
            reference = None
        elif dtype != torch.float64 and (
            _out_of_range(norms[: len(rows)][finite], shard.dim)
            or not torch.isfinite(norms[len(rows) :]).all()
        ):
            dtype = torch.float64
        elif (better := _reference(messages, finite, reference)) != reference:
            reference = better
        else:
            break
    num_points = len(gram) - len(rows)
    kept = torch.cat([finite, torch.ones(num_points, dtype=torch.bool)])
    return Geometry(gram[kept][:, kept], num_points), finite


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of all rows with all others, summed in float64 over short blocks."""
    num_columns = one.shape[1]
    total = torch.zeros(len(one), len(other), dtype=torch.float64, device=one.device)
    whole = num_columns // _BLOCK * _BLOCK
    if whole:
        left, right = (
            rows[:, :whole].view(len(rows), -1, _BLOCK).transpose(0, 1) for rows in (one, other)
        )
        total += torch.bmm(left, right.mT).sum(dim=0, dtype=torch.float64)
    if whole < num_columns:
        total += one[:, whole:] @ other[:, whole:].T
    return total


def _centred(columns: Tensor, reference: int | None, out: Tensor) -> Tensor:
    if reference is None:
        return out.copy_(columns)
    if columns.dtype == out.dtype:
        return torch.sub(columns, columns[reference], out=out)
    out.copy_(columns)
    return out.sub_(columns[reference].to(out.dtype))


def _sample(rows: Tensor, pieces: int = 16, width: int = 256) -> Tensor:
    """A few pieces of columns, spread evenly over the messages."""
    dim = rows.shape[1]
    if dim <= pieces * width:
        return rows
    starts = torch.linspace(0, dim - width, pieces, dtype=torch.float64).long().tolist()
    return torch.cat([rows[:, start : start + width] for start in starts], dim=1)


def _reference(gram: Tensor, finite: Tensor, current: int | None) -> int | None:
    """The row to centre on: the current choice unless distances would drown in rounding.

    A row is central if more than half of the rows lie near it, so liars in the minority cannot
    place it far from the honest ones. A hundredfold excess costs two of float32's seven digits.
    """
    rows = finite.nonzero().flatten()
    if not len(rows):
        return None
    gram = gram[finite][:, finite]
    middle = len(rows) // 2
    spread = Geometry(gram).squared_distances().sort(dim=1).values[:, middle]
    central = int(spread.argmin())
    if not torch.isfinite(spread[central]):
        return None
    offset = gram.diagonal().nan_to_num(nan=torch.inf).sort().values[middle]
    return int(rows[central]) if offset > 100 * spread[central] else current


def _out_of_range(squared_norms: Tensor, dim: int) -> bool:
    """Whether products of float32 overflowed, or so many of them underflowed that it matters."""
    if not len(squared_norms):
        return False
    typical = squared_norms.sort().values[len(squared_norms) // 2]
    return bool(~torch.isfinite(squared_norms).all() | (typical < 1e-28 * dim))
