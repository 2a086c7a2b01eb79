"""DRACO, cyclic code: every worker sends one combination of 2 s + 1 gradients."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from phalanx.checks import require_at_least, require_between, require_minority, require_one_of
from phalanx.coding.base import Code, Decoded, State
from phalanx.coding.field_code import FieldCode, forged
from phalanx.coding.fixed_point import HEADER, MOST_BITS
from phalanx.coding.frequency_band import Band, CyclicAlgebra, cyclic_algebra
from phalanx.coding.groups import (
    check_messages,
    check_owned,
    check_partitions,
    circle_lengths,
    consecutive_groups,
    name,
)
from phalanx.coding.locator import locate
from phalanx.coding.projection import project
from phalanx.columns import weighted_sum
from phalanx.errors import DecodeError

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 5e-7}
_LOST_DIGITS = 1e-3  # a combination that amplifies rounding beyond this is no gradient any more


@dataclass(frozen=True)
class DracoCyclic(Code):
    """DRACO, cyclic code: exact gradients whatever s workers send, and any number of workers.

    Worker i computes partitions i .. i + 2 s around a circle and sends one weighted sum of their
    gradients. The server looks at a few secret projections of the messages, finds who is Byzantine,
    and combines the others' messages into the exact sum.

    Guarantee, for each circle of workers: with e messages missing and b Byzantine, the mean
    gradient is exact up to rounding, and the Byzantine workers are named, whenever `e + 2 b <= 2
    s`. If more is wrong, a `DecodeError`; more than s workers that *collude* can fool any code of
    this redundancy, and with more than `2 s - b` missing no spare message is left to tell that b
    are wrong. A change smaller than `tolerance`, relative to a message, passes for rounding, and
    does as little.

    The band of frequencies lies around zero, so messages are real and well conditioned for any
    number of workers; `band="published"` is the paper's: messages of twice the width, whose weights
    grow to 1e5 at 45 workers. Rounding is amplified most by neighbours that fail together: up to
    4-fold at 15 workers with s = 3 Byzantine workers side by side, 300-fold at 45 workers on one
    circle with s = 5. Hence `group_length`.

    With `arithmetic="field"` there is no tolerance, and no condition on `group_length`: gradients
    become whole numbers modulo 2^31 - 1, of 26 bits on circles of 15 workers, and messages int32.
    The gradient is bit for bit that of the run without Byzantine workers, and exactly those are
    named who sent anything else, with probability above `1 - b 2^-56` in a round, over projections
    that nobody knows before he has sent. It needs replicas that agree to the bit, as repetition
    does. Against the mean in floating point it is off by the fixed point's rounding, which
    `Decoded.error` bounds: half a unit a coordinate, of about 2^-21 of the largest coordinate of
    the rounds before. What is larger than 16 times that is cut down, and counted in
    `Decoded.saturated`.

    Cost: encoding 2 s + 1 vector additions; decoding two passes over the messages and algebra on
    `group_length` x `group_length` matrices; beyond the messages, memory for the gradient and 4096
    float64 numbers per worker.

    Source: Chen, Wang, Charles and Papailiopoulos, "DRACO: Byzantine-resilient Distributed Training
    via Redundant Gradients", ICML 2018, section 4. The centred band with real weights, several
    projections, erasures and groups are this package's; the paper's numerics fail in float32 (docs,
    measurements).

    >>> import torch
    >>> from phalanx.coding import DracoCyclic
    >>> code = DracoCyclic(num_workers=5, num_byzantine=1)
    >>> gradients = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    >>> messages = torch.stack([code.encode(i, gradients[code.assignment[i]]) for i in range(5)])
    >>> messages[3] = -100.0
    >>> decoded = code.decode(messages)
    >>> round(decoded.gradient.item(), 4), decoded.suspects.tolist()
    (3.0, [False, False, False, True, False])
    """

    num_byzantine: int = 3
    """Byzantine workers tolerated in each circle (s in the paper); fewer than half of all."""

    group_length: int | None = None
    """Most workers on one circle; the workers are cut into circles of about equal length, each with
    its own code. By default 21, or 2 num_byzantine + 1 if that is more. Shorter is better
    conditioned and tolerates more in all."""

    band: Band = "centered"
    """'centered': real weights. 'published': as in the paper, for comparison."""

    tolerance: float | None = None
    """Largest relative disagreement that passes for rounding; by default 5e-7 for float32 messages,
    1e-12 for float64, four units in the last place for half precision. Raise it if replicas compute
    on different hardware."""

    num_projections: int = 32
    """Numbers per message on which workers are located; one alone can mislocate neighbours."""

    arithmetic: Literal["float", "field"] = "float"
    """'float': messages are floating-point numbers, decoded up to rounding, with a tolerance.
    'field': whole numbers modulo 2^31 - 1, decoded exactly; `band`, `tolerance` and
    `num_projections` are of no use then."""

    fraction_bits: int | None = None
    """Bits after the binary point of a number in a field message. By default the server chooses
    them for each round from the largest coordinate of the rounds before; outside of a run, such
    that numbers up to 64 fit."""

    def __post_init__(self) -> None:
        require_minority(self.num_byzantine, self.num_workers)
        shortest = 2 * self.num_byzantine + 1
        if self.group_length is not None and not shortest <= self.group_length <= self.num_workers:
            raise ValueError(
                f"group_length must be from 2 num_byzantine + 1 = {shortest} to num_workers = "
                f"{self.num_workers}, got {self.group_length}"
            )
        require_one_of(("centered", "published"), band=self.band)
        require_at_least(0, tolerance=self.tolerance)
        require_at_least(1, num_projections=self.num_projections)
        require_one_of(("float", "field"), arithmetic=self.arithmetic)
        require_between(-MOST_BITS, MOST_BITS, fraction_bits=self.fraction_bits)
        if self.arithmetic == "field" and (self.band != "centered" or self.tolerance is not None):
            raise ValueError(
                "arithmetic='field' is exact: it goes without band and tolerance, got band="
                f"{self.band!r}, tolerance={self.tolerance}"
            )
        if self.arithmetic == "float" and self.fraction_bits is not None:
            raise ValueError(
                f"fraction_bits needs arithmetic='field', got {self.fraction_bits} with 'float'"
            )

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """The circles: ranges of workers, which hold the partitions of the same numbers."""
        longest = self.group_length or max(21, 2 * self.num_byzantine + 1)
        return consecutive_groups(
            circle_lengths(self.num_workers, 2 * self.num_byzantine + 1, longest)
        )

    @cached_property
    def _field(self) -> FieldCode | None:
        if self.arithmetic == "float":
            return None
        return FieldCode(self.groups, self.num_byzantine, self.fraction_bits)

    @cached_property
    def weights(self) -> Tensor:
        """`(workers, partitions)`: row i makes the message of worker i.

        float64 or complex128; int64, modulo p, with `arithmetic="field"`.
        """
        if self._field is not None:
            return self._field.weights
        dtype = torch.float64 if self.band == "centered" else torch.complex128
        weights = torch.zeros(self.num_workers, self.num_workers, dtype=dtype)
        for group in self.groups:
            circle = slice(group.start, group.stop)
            weights[circle, circle] = self._algebra(group).weights
        return weights

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition: 2 s + 1 around its circle."""
        spread = range(2 * self.num_byzantine + 1)
        held = torch.zeros(self.num_workers, self.num_workers, dtype=torch.bool)
        for group in self.groups:
            for position, worker in enumerate(group):
                held[worker, [group[(position + step) % len(group)] for step in spread]] = True
        return held

    def can_decode(self, arrived: Bool[Tensor, " workers"]) -> bool:
        """Whether at most 2 s messages of each circle are missing."""
        missing = [int((~arrived[group.start : group.stop]).sum()) for group in self.groups]
        return max(missing) <= 2 * self.num_byzantine

    @property
    def min_workers(self) -> int:
        """All but 2 s, who may all belong to one circle."""
        return self.num_workers - 2 * self.num_byzantine

    def width(self, dim: int) -> int:
        """Numbers in a message about `dim` parameters."""
        if self._field is not None:
            return dim + HEADER
        return dim if self.band == "centered" else 2 * dim

    def message_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of messages about gradients of this one: int32 with `arithmetic="field"`."""
        return dtype if self._field is None else torch.int32

    def forged(self, values: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
        """What a Byzantine worker sends whose attack came up with these numbers.

        With `arithmetic="field"` they are rounded, and taken modulo p, so that they are a message;
        NaN and infinity become numbers that are none, and mark their sender.
        """
        return values if self._field is None else forged(values)

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """Where the binary point is in the first round, with `arithmetic="field"`."""
        return () if self._field is None else self._field.init(dtype, device)

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        """Where the binary point is in this round, with `arithmetic="field"`."""
        return {} if self._field is None else self._field.broadcast(state)

    def informed(self, extra: Mapping[str, Tensor]) -> "DracoCyclic":
        """The code with the binary point where it was broadcast to be."""
        if self._field is None or (told := self._field.informed(extra)) == self._field:
            return self
        return replace(self, fraction_bits=told.fraction_bits)

    def encode(self, worker: int, gradients: Float[Tensor, "owned dim"]) -> Num[Tensor, " width"]:
        """The weighted sum of the worker's gradients; real parts, then imaginary parts, if complex.

        Raises:
            ValueError: if there is not one gradient for each partition that the worker owns.
        """
        if self._field is not None:
            return self._field.encode(worker, gradients)
        owned = self.assignment[worker]
        check_owned(len(gradients), int(owned.sum()), worker)
        return self._combine(self.weights[worker, owned][None], gradients)[0]

    def encode_all(self, blocks: Iterable[Float[Tensor, "_ dim"]]) -> Num[Tensor, "workers width"]:
        """All messages, one matrix product per block; see `Code.encode_all`.

        Raises:
            ValueError: if the blocks do not hold one gradient for each partition.
        """
        if self._field is not None:
            return self._field.encode_all(blocks)
        messages, first = torch.empty(0, 0), 0
        for gradients in blocks:
            rows, dim = gradients.shape
            if first == 0:
                messages = gradients.new_zeros(self.num_workers, self.width(dim))
            check_partitions(first + rows, self.num_partitions, complete=False)
            shares = self.weights[:, first : first + rows]
            parts = (shares.real, shares.imag) if shares.is_complex() else (shares,)
            halves = messages.view(self.num_workers, len(parts), dim).unbind(1)
            for half, part in zip(halves, parts, strict=True):
                half.addmm_(part.to(gradients), gradients)  # in place: messages are large
            first += rows
        check_partitions(first, self.num_partitions)
        return messages

    def decode(
        self,
        messages: Num[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """The mean gradient, and who is Byzantine; see `Code.decode`.

        With `arithmetic="field"` the gradient is in float32.
        """
        if self._field is not None:
            return self._field.decode(messages, arrived, generator=generator)
        if arrived is None:
            arrived = torch.ones(self.num_workers, dtype=torch.bool)
        check_messages(messages, arrived, self.num_workers)
        if messages.shape[1] != self.width(messages.shape[1] // self.width(1)):
            raise ValueError(
                f"messages must have an even width with band='published', got {messages.shape[1]}"
            )
        if generator is None:
            generator = torch.Generator().manual_seed(secrets.randbits(63))
        projections = self._project(messages, generator)
        usable = arrived.cpu() & projections.isfinite().all(dim=1)
        suspects = arrived.cpu() & ~usable
        tolerance = self._tolerance(messages.dtype)
        trusted: list[int] = []
        weights, residual = [], 0.0
        for group in self.groups:
            algebra = self._algebra(group)
            rows = slice(group.start, group.stop)
            erased = (~usable[rows]).nonzero().flatten().tolist()
            located = locate(algebra, projections[rows], erased, tolerance)
            if located.byzantine is None:
                raise self._error(group, erased, located.residual, tolerance)
            suspects[[group[position] for position in located.byzantine]] = True
            kept = sorted(set(range(len(group))) - set(erased) - set(located.byzantine))
            combination = algebra.combination(kept)
            self._check_conditioning(combination, group, kept, messages.dtype)
            trusted += [group[position] for position in kept]
            weights.append(combination / self.num_workers)
            residual = max(residual, located.residual)
        gradient = self._decode_sum(messages, trusted, torch.cat(weights))
        return Decoded(gradient, suspects.to(messages.device), residual)

    def update(
        self,
        messages: Num[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None,
        state: State,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Decoded, State]:
        """See `Code.update`; with `arithmetic="field"`, the gradient is in the dtype of `init`."""
        if self._field is not None:
            return self._field.update(messages, arrived, state, generator=generator)
        return super().update(messages, arrived, state, generator=generator)

    def _algebra(self, group: range) -> CyclicAlgebra:
        return cyclic_algebra(len(group), self.num_byzantine, self.band)

    def _combine(self, weights: Tensor, gradients: Tensor) -> Tensor:
        """`weights @ gradients` as real rows of the message's width."""
        parts = (weights.real, weights.imag) if weights.is_complex() else (weights,)
        return torch.cat([part.to(gradients) @ gradients for part in parts], dim=1)

    def _project(self, messages: Tensor, generator: torch.Generator) -> Tensor:
        if self.band == "centered":
            return project(messages, self.num_projections, generator)
        # Both halves meet the same secret: the projection of a complex row is complex-linear in it.
        seed = int(torch.randint(2**62, (), generator=generator))
        real, imaginary = (
            project(half, self.num_projections, torch.Generator().manual_seed(seed))
            for half in _halves(messages)
        )
        return torch.complex(real, imaginary)

    def _decode_sum(self, messages: Tensor, trusted: list[int], weights: Tensor) -> Tensor:
        shares = weights.new_zeros(self.num_workers).index_copy(0, torch.tensor(trusted), weights)
        if not weights.is_complex():
            return weighted_sum(messages, shares)
        real, imaginary = _halves(messages)
        return weighted_sum(real, shares.real) - weighted_sum(imaginary, shares.imag)

    def _tolerance(self, dtype: torch.dtype) -> float:
        if self.tolerance is not None:
            return self.tolerance
        return _TOLERANCES.get(dtype, 4 * torch.finfo(dtype).eps)

    def _check_conditioning(
        self, combination: Tensor, group: range, kept: list[int], dtype: torch.dtype
    ) -> None:
        lost = combination.abs().square().sum().sqrt().item() * torch.finfo(dtype).eps
        if lost <= _LOST_DIGITS * len(group) ** 0.5 or dtype.itemsize < 4:
            return
        failed = [group[position] for position in range(len(group)) if position not in kept]
        raise DecodeError(
            f"workers {name(failed)} failed side by side on a circle of {len(group)}: decoding "
            f"around them would lose all digits of {dtype}; use a smaller group_length",
            workers=failed,
            bound=self.num_byzantine,
        )

    def _error(
        self, group: range, erased: list[int], residual: float, tolerance: float
    ) -> DecodeError:
        missing = [group[position] for position in erased]
        bound = (
            "e missing and b Byzantine messages are tolerated while e + 2 b <= "
            f"{2 * self.num_byzantine}"
        )
        if len(missing) > 2 * self.num_byzantine:
            reason = f"{len(missing)} messages are missing or not finite"
        else:
            reason = (
                f"{len(missing)} messages are missing or not finite, and too many of the others "
                "are Byzantine, or honest replicas disagree (relative residual "
                f"{residual:.1e}, tolerance {tolerance:.1e})"
            )
        return DecodeError(
            f"workers {group.start} to {group.stop - 1} cannot be decoded: {reason}; missing: "
            f"{name(missing)}; {bound}",
            workers=list(group),
            bound=self.num_byzantine,
        )


def _halves(messages: Tensor) -> tuple[Tensor, ...]:
    """Views of the real and of the imaginary parts."""
    workers, width = messages.shape
    return messages.view(workers, 2, width // 2).unbind(1)
