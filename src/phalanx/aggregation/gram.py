"""The Gram matrix of the messages, and the distances that follow from it.

Krum, the geometric median and their kin ask only how far the messages lie from one another:
`||x_i - x_j||^2 = G_ii + G_jj - 2 G_ij` with the Gram matrix `G_ij = <x_i, x_j>`, which is `workers
x workers` numbers, however long the messages are. What costs time is to fill it once, at the speed
of memory and without cancellation.
"""

import math
from functools import cache
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from threadpoolctl import ThreadpoolController
from torch import Tensor

from phalanx.columns import Shard, column_blocks, finite_rows, whole
from phalanx.floats import working

_BLOCK = 4096  # columns of one product: short enough for float32 sums, long enough for the kernel
_BLOCKS = 32  # products per call where there is no cache to fit
_LANES = 8  # the rows of a product come in as many, or its kernels take a slow way for the rest
_MANY = 24  # rows from which half a product pays on every processor
_SMALL = 1 << 16  # numbers below which float64 costs nothing that anybody would notice
_MAX_PASSES = 8
_RANGE = 2.0**200  # squares of typical distances within which no others of note over- or underflow
_SHIFT = 600  # by which exponents of messages are moved where squares did
_FAR = 2.0**800  # times the typical squared distance: what is farther counts as infinitely far
_LOCK = Lock()  # or who limits the threads second would restore the first one's limit


class Geometry(NamedTuple):
    """How some messages lie to one another.

    Attributes:
        gram: `(rows, rows)` float64 in main memory, inner products of the rows less one common
            vector. Which vector does not matter to a rule whose weights sum to one. A row some
            2^400 times as far off as others are has infinities and NaN in its own row and column.
        num_points: rows at the end that are no messages, but points that were measured along:
            the origin if something clips, then the centre if the rule has one.
        weights: `(messages,)` float64, the sample weights: how much each message counts, 1 on
            average; None if all count alike.
        unit: the length that a distance of 1 stands for, a power of two: see `in_its_own_unit`. It
            concerns rules that compare distances to a length that they were given.
    """

    gram: Float[Tensor, "rows rows"]
    num_points: int = 0
    weights: Float[Tensor, " messages"] | None = None
    unit: float = 1.0

    @property
    def num_messages(self) -> int:
        """Rows that are messages, or mixtures of them."""
        return len(self.gram) - self.num_points

    @property
    def sample_weights(self) -> Float[Tensor, " messages"]:
        """How much each message counts: ones if all count alike."""
        alike = self.gram.new_ones(self.num_messages)
        return alike if self.weights is None else self.weights

    def times_sample_weights(
        self, weights: Float[Tensor, " messages"]
    ) -> Float[Tensor, " messages"]:
        """Weights of messages times their sample weights, with the same sum."""
        if self.weights is None:
            return weights
        weighed = weights * self.weights
        return weighed / weighed.sum() * weights.sum()

    def squared_distances(self) -> Float[Tensor, "rows rows"]:
        """Squared distance of every pair; infinite where a row is not `reached`."""
        norms = self.gram.diagonal()
        # Symmetric to the bit, so that ties between pairs stay ties.
        products = self.gram + self.gram.T
        squared = (norms[:, None] + norms[None, :] - products).clamp(min=0)
        return squared.nan_to_num(nan=torch.inf, posinf=torch.inf).fill_diagonal_(0)

    def reached(self) -> Bool[Tensor, " rows"]:
        """Which rows are not infinitely far off."""
        return torch.isfinite(self.gram.diagonal())

    def reached_gram(self) -> Float[Tensor, "rows rows"]:
        """The Gram matrix with zeros for the rows that are not `reached`."""
        reached = self.reached()
        return self.gram.where(reached[:, None] & reached, 0.0)

    def in_its_own_unit(self, counted: Bool[Tensor, " messages"] | None = None) -> "Geometry":
        """The same in a unit in which the typical squared distance lies between 1/4 and 1.

        So rules never meet numbers whose squares over- or underflow, and give the same weights, to
        the bit, whatever power of two multiplies all messages.

        Args:
            counted: the messages that say what is typical; all of them by default.
        """
        norms, messages = self.gram.diagonal(), self.gram.diagonal()[: self.num_messages]
        if counted is not None:
            messages = messages[counted]
        typical = _typical(messages, norms[self.num_messages :])
        if typical == 0:  # most messages coincide: the others say what is near
            apart = norms[(norms > 0) & torch.isfinite(norms)].sort().values
            typical = apart[len(apart) // 2].item() if len(apart) else 1.0
        if not math.isfinite(typical):
            return self
        half = -(-math.frexp(typical)[1] // 2)
        gram = self.gram * 2.0 ** (-2 * half)
        far = ~(gram.diagonal() <= _FAR)
        gram[far], gram[:, far] = torch.inf, torch.inf
        return self._replace(gram=gram, unit=self.unit * 2.0**half)

    def with_points(self, num_points: int) -> "Geometry":
        """The messages and the last few points alone."""
        kept = torch.ones(len(self.gram), dtype=torch.bool)
        kept[self.num_messages : len(kept) - num_points] = False
        return self._replace(gram=self.gram[kept][:, kept], num_points=num_points)

    def among(
        self, kept: Bool[Tensor, " messages"], weights: Float[Tensor, " kept"] | None
    ) -> "Geometry":
        """Some of the messages, with these sample weights, and all points."""
        kept = torch.cat([kept, kept.new_ones(self.num_points)])
        return self._replace(gram=self.gram[kept][:, kept], weights=weights)

    def mixed(
        self,
        matrix: Float[Tensor, "mixtures messages"],
        weights: Float[Tensor, " mixtures"] | None = None,
        *,
        from_origin: bool = False,
    ) -> "Geometry":
        """How mixtures of the messages lie to one another, and to the points as they were.

        Args:
            matrix: the weights of the messages in every mixture; rows sum to one.
            weights: how much each mixture counts, as in the attributes.
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
        return self._replace(gram=gram, weights=weights)


def partial_gram(
    rows: Float[Tensor, "workers columns"],
    reference: int | None = None,
    dtype: torch.dtype | None = None,
    points: Float[Tensor, "points columns"] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "all all"]:
    """Inner products of the rows less the reference row, over the columns given.

    Gram matrices of shards of the columns add up to that of the whole; shards may even differ in
    their reference, because any common vector will do.

    Args:
        rows: the messages, or a shard of their columns.
        reference: the row to subtract from all; the origin if None.
        dtype: what the products are calculated in; float64, or by default float32 for float32 and
            narrower. Sums over blocks are float64 always.
        points: further rows, in the dtype and on the device of the messages, that come last in the
            matrix; the messages are not copied for their sake.
        scale: what all of them are multiplied by.

    Returns:
        float64, on the device of the rows. A row that is not finite, or whose products overflow,
        shows as a diagonal entry that is not finite, and spoils only its own row and column.

    Cost: `workers^2 columns` multiply-adds; one pass over memory; a buffer of 4 096 columns a
    thread. The copies cost less than the long strides between the rows would.
    """
    dtype = dtype or working(rows.dtype)
    parts = [rows] if points is None else [rows, points]
    size, threads = sum(map(len, parts)), torch.get_num_threads()
    on_cpu = rows.device.type == "cpu"
    if on_cpu and threads == 1 and (size >= _MANY or _slow_products()):
        return _by_halves(parts, reference, dtype, scale)
    total = torch.zeros(size, size, dtype=torch.float64, device=rows.device)
    pieces = list(column_blocks(rows.shape[1], _BLOCK))
    at_once = threads if on_cpu else _BLOCKS
    height, width = -(-size // _LANES) * _LANES, min(_BLOCK, rows.shape[1])
    blocks = rows.new_zeros(min(at_once, len(pieces)), height, width, dtype=dtype)
    for first in range(0, len(pieces), at_once):
        batch = pieces[first : first + at_once]
        for block, columns in zip(blocks, batch, strict=False):
            _fill(block[:size], parts, columns, reference, scale)
        used = blocks[: len(batch)]
        total += torch.bmm(used, used.mT)[:, :size, :size].sum(dim=0, dtype=torch.float64)
    return total


def _slow_products() -> bool:
    """Whether half a product by NumPy is faster than a whole one by torch, for few rows too.

    With AVX-512 it is not; without, where torch's products may take twice as long, it is.
    """
    return torch.backends.cpu.get_cpu_capability() != "AVX512"


def _by_halves(
    parts: list[Tensor], reference: int | None, dtype: torch.dtype, scale: float
) -> Float[Tensor, "all all"]:
    """`partial_gram` by NumPy in one thread.

    Of a matrix and its own transpose NumPy computes one triangle (BLAS `syrk`). Messages from which
    nothing is subtracted are not even copied.
    """
    rows, size = parts[0], sum(map(len, parts))
    total = np.zeros((size, size))
    buffer = rows.new_zeros(size, min(2 * _BLOCK, rows.shape[1]), dtype=dtype)
    as_it_is = len(parts) == 1 and reference is None and rows.dtype == dtype and scale == 1
    silent = np.errstate(over="ignore", invalid="ignore")  # what overflows shows on the diagonal
    with _LOCK, _blas().limit(limits=1, user_api="blas"), silent:
        for columns in column_blocks(rows.shape[1], 2 * _BLOCK):
            block = rows[:, columns]
            if not as_it_is:
                block = buffer[:, : block.shape[1]]
                _fill(block, parts, columns, reference, scale)
            numbers = block.numpy()
            total += numbers @ numbers.T
    return torch.from_numpy(total)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def measure(
    rows: Float[Tensor, "workers dim"],
    points: Float[Tensor, "points dim"] | None = None,
    shard: Shard | None = None,
    counted: Bool[Tensor, " workers"] | None = None,
) -> tuple[Geometry, Bool[Tensor, " workers"]]:
    """The geometry of the finite rows and of points, if given, and which rows are finite.

    The rows that are `counted`, by default all, say what length is typical.

    The reference that is subtracted must lie among the messages, or else their distances drown in
    the rounding of their norms. A sample of the columns proposes it; the Gram matrix itself shows
    whether that was good, and if not (whoever sent it saw to it that it looks well only on the
    sample) names a better one for another pass. Rows that are not finite show on the diagonal, and
    only rows that do are looked at; products beyond the range of float32 make a float64 pass, and
    typical ones beyond that of float64 one of messages that are multiplied by a power of two.

    Of a shard of the columns it gives the geometry of the whole messages: Gram matrices add up, and
    all that is decided here is decided on their sums.

    Cost: one pass, as a rule; at most eight, under attack.

    Float32 products rely on torch's default, `torch.set_float32_matmul_precision("highest")`: the
    lower settings (TF32, bfloat16) leave too few digits.
    """
    reference, finite = None, torch.ones(len(rows), dtype=torch.bool)
    counted = finite.clone() if counted is None else counted
    if shard is None:  # else a look at a sample would cost as much as it may save: a meeting of all
        shard = whole(rows)
        sampled = partial_gram(_sample(rows), dtype=torch.float64).cpu()
        reference = _reference(sampled, finite, None)
    small = len(rows) * shard.dim <= _SMALL
    dtype, exponent = torch.float64 if small else working(rows.dtype), 0
    for _ in range(_MAX_PASSES):
        scale = 2.0**-exponent
        gram = shard.add_up(partial_gram(rows, reference, dtype, points, scale)).cpu()
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
        elif shift := _shift(rows, finite & counted, reference, norms, exponent, shard):
            exponent += shift
        elif (better := _reference(messages, finite, reference)) != reference:
            reference = better
        else:
            break
    num_points = len(gram) - len(rows)
    kept = torch.cat([finite, torch.ones(num_points, dtype=torch.bool)])
    geometry = Geometry(gram[kept][:, kept], num_points, unit=2.0**exponent)
    return geometry.in_its_own_unit(counted[finite]), finite


def _fill(
    block: Tensor, parts: list[Tensor], columns: slice, reference: int | None, scale: float
) -> None:
    """Scaled columns of several tensors, less the reference row, in a block that may be wider."""
    width, start = columns.stop - columns.start, 0
    origin = None if reference is None else parts[0][reference, columns]
    for part in parts:
        place, start = block[start : start + len(part), :width], start + len(part)
        if origin is None:
            place.copy_(part[:, columns])
        elif part.dtype == block.dtype:
            torch.sub(part[:, columns], origin, out=place)
        else:
            place.copy_(part[:, columns]).sub_(origin)
    if scale != 1:
        block *= scale
    if width < block.shape[1]:
        block[:, width:] = 0


def _sample(rows: Tensor, pieces: int = 16, width: int = 256) -> Tensor:
    """A few pieces of columns, spread evenly over the messages."""
    dim = rows.shape[1]
    if dim <= pieces * width:
        return rows
    starts = torch.linspace(0, dim - width, pieces, dtype=torch.float64).long().tolist()
    return torch.cat([rows[:, start : start + width] for start in starts], dim=1)


def _reference(gram: Tensor, finite: Tensor, current: int | None) -> int | None:
    """The row to centre on: the current choice unless distances would drown in rounding.

    A row is central if more than half of the rows lie near it, so a Byzantine minority cannot place
    it far from the honest ones. A hundredfold excess costs two of float32's seven digits.
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


def _typical(messages: Tensor, points: Tensor) -> float:
    """The median squared distance of the messages, or the largest of the points if that is more."""
    ordered = messages.nan_to_num(nan=torch.inf).sort().values
    middle = ordered[len(ordered) // 2 : len(ordered) // 2 + 1]
    both = torch.cat([middle, points.nan_to_num(nan=torch.inf)])
    return both.max().item() if len(both) else 0.0


def _shift(
    rows: Tensor,
    finite: Tensor,
    reference: int | None,
    norms: Tensor,
    exponent: int,
    shard: Shard,
) -> int:
    """What is to be added to the exponent by which messages are divided; 0 if squares are fit."""
    typical = _typical(norms[: len(rows)][finite], norms[len(rows) :])
    if typical == 0:  # they coincide, or their squares have vanished
        zeros = rows.new_zeros(1).expand(rows.shape[1])
        origin = zeros if reference is None else rows[reference]
        reach = shard.add_up(_reach(rows, origin)).cpu()[finite]
        vanished = len(reach) > 0 and reach.sort().values[len(reach) // 2] > 0
        return -_SHIFT if vanished and exponent > -_SHIFT else 0
    if not math.isfinite(typical):
        return _SHIFT if exponent < _SHIFT else 0
    return 0 if 1 / _RANGE <= typical <= _RANGE else math.frexp(typical)[1] // 2


def _reach(rows: Tensor, origin: Tensor) -> Float[Tensor, " workers"]:
    """The largest offset of each row from a point, in any coordinate."""
    reach = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for columns in column_blocks(rows.shape[1]):
        offsets = rows[:, columns].double() - origin[columns].double()
        reach = reach.maximum(offsets.abs().amax(dim=1))
    return reach


def _out_of_range(squared_norms: Tensor, dim: int) -> bool:
    """Whether products of float32 overflowed, or so many of them underflowed that it matters."""
    if not len(squared_norms):
        return False
    typical = squared_norms.sort().values[len(squared_norms) // 2]
    return bool(~torch.isfinite(squared_norms).all() | (typical < 1e-28 * dim))
