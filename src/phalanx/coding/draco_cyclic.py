"""DRACO, cyclic code: every worker sends one combination of 2 s + 1 gradients."""

import math
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
from phalanx.coding.projection import project
from phalanx.coding.verdict import Evidence, Verdict, judge
from phalanx.columns import Shard, weighted_sum, whole
from phalanx.errors import DecodeError
from phalanx.floats import working

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 5e-7}


@dataclass(frozen=True)
class DracoCyclic(Code):
    """DRACO, cyclic code: exact gradients whatever s workers send, and any number of workers.

    Worker i computes partitions i .. i + 2 s around a circle and sends one weighted sum of their
    gradients. The server looks at a few secret projections of the messages, finds a set of workers
    without whom they agree, and combines the others' messages into the sum.

    Guarantee, for each circle of workers with e messages missing and b Byzantine, `e + 2 b <= 2 s`:
    the mean gradient is off by at most `Decoded.error` (relative to a partition's), some 1e-6 to
    1e-5 of float32 messages unless workers lie by little; and a worker is named only if *every* set
    of workers that explains the messages, up to `tolerance`, accuses it. Honest workers are never
    named as long as rounding keeps within the tolerance. Byzantine ones are unless their lies are
    small enough to be blamed on others: below about 3e-3 of a message at 15 workers and s = 3, if
    they know the code (`phalanx.attacks.LeastVisible`). Such lies move the gradient by less than
    the tolerance times what rounding is amplified by: 2e-5 at 15 workers, 5e-4 at 21 with s = 5.
    The chance that a lie hides from the projections, so that the error is larger than stated, is
    told of at `phalanx.coding.projection.project`.

    If more is wrong, a `DecodeError`; more than s workers that *collude* can fool any code of this
    redundancy, and with more than `2 s - b` missing no spare message is left to tell that b are
    wrong.

    The band of frequencies lies around zero, so messages are real and well conditioned for any
    number of workers; `band="published"` is the paper's: messages of twice the width, whose weights
    grow to 1e5 at 45 workers. Rounding, and small lies, are amplified most by neighbours: on one
    circle of 45 workers with s = 5, lies as large as the messages can pass for rounding (the error
    says so), and in half precision even on short ones. Hence `group_length` and `max_error`.

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
    all sets of s workers of a circle, up to 25,000; beyond, on those that a search proposes.
    Memory, beyond the messages, for the gradient and 4096 float64 numbers per worker.

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

    max_error: float | None = None
    """Largest `Decoded.error` that is accepted, a `DecodeError` beyond it; by default any."""

    arithmetic: Literal["float", "field"] = "float"
    """'float': messages are floating-point numbers, decoded up to rounding, with a tolerance.
    'field': whole numbers modulo 2^31 - 1, decoded exactly; without `band`,
    `tolerance` and `max_error`."""

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
        require_at_least(0, max_error=self.max_error)
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
            algebra = cyclic_algebra(len(group), self.num_byzantine, self.band)
            weights[circle, circle] = algebra.weights
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
        shard: Shard | None = None,
    ) -> Decoded:
        """The mean gradient, and who is Byzantine; see `Code.decode`.

        With `arithmetic="field"` the gradient is in float32.

        With a `shard`, messages hold its columns only, and so does the gradient. Every shard is
        projected by a secret of its own, and the projections add up to those of whole messages.
        """
        if self._field is not None:
            if shard is not None:
                raise ValueError("arithmetic must be 'float' to decode by shards, got 'field'")
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
        projections = (shard or whole(messages)).add_up(self._project(messages, generator))
        here = arrived.cpu()
        usable = here & projections.isfinite().all(dim=1)
        suspects = here & ~usable
        shares = torch.zeros(self.num_workers, dtype=self.weights.dtype)
        residual, error, energy = 0.0, 0.0, 0.0
        for group in self.groups:
            verdict = self._judge(group, projections, usable, messages.dtype)
            suspects[[group[position] for position in verdict.named]] = True
            rows = slice(group.start, group.stop)
            kept = usable[rows].clone()
            kept[verdict.accused] = False
            combination = self._algebra(group).combination(kept.nonzero().flatten().tolist())
            shares[rows][kept] = combination / self.num_workers
            residual = max(residual, verdict.residual)
            limits = torch.finfo(working(messages.dtype)), torch.finfo(messages.dtype)
            rounding = len(group) * limits[0].eps / 2 + limits[1].eps / 2
            error += verdict.error + rounding * combination.norm().item() * verdict.trusted
            # No gradients are shorter than what the honest messages, whoever they are, leave.
            energy += (verdict.honest / self._algebra(group).gain) ** 2
        if error:
            typical = math.sqrt(energy / self.num_workers)
            error = error / self.num_workers / typical if typical else math.inf
        if self.max_error is not None and error > self.max_error:
            raise DecodeError(
                f"the decoded gradient may be off by {error:.1e} of a partition's, and max_error "
                f"is {self.max_error:.1e}; a smaller group_length is better conditioned",
                workers=list(range(self.num_workers)),
                bound=self.num_byzantine,
            )
        gradient = self._decode_sum(messages, shares)
        return Decoded(gradient, suspects.to(messages.device), residual, error)

    def _judge(
        self, group: range, projections: Tensor, usable: Tensor, dtype: torch.dtype
    ) -> Verdict:
        rows = slice(group.start, group.stop)
        tolerance = self._tolerance(dtype)
        missing = (~usable[rows]).nonzero().flatten().tolist()
        verdict = None
        if len(missing) <= 2 * self.num_byzantine:
            # Projections of narrow messages are themselves off by some units in the last place.
            allowed = tolerance + 2 * torch.finfo(working(dtype)).eps
            verdict = judge(Evidence(self._algebra(group), projections[rows], missing, allowed))
        if verdict is None:
            raise self._error(group, missing, tolerance)
        return verdict

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

    def _project(self, messages: Tensor, generator: torch.Generator) -> Tensor:
        if self.band == "centered":
            return project(messages, generator)
        # Both halves meet the same secret: the projection of a complex row is complex-linear in it.
        seed = int(torch.randint(2**62, (), generator=generator))
        real, imaginary = (
            project(half, torch.Generator().manual_seed(seed)) for half in _halves(messages)
        )
        return torch.complex(real, imaginary)

    def _combine(self, weights: Tensor, gradients: Tensor) -> Tensor:
        """`weights @ gradients` as real rows of the message's width."""
        parts = (weights.real, weights.imag) if weights.is_complex() else (weights,)
        return torch.cat([part.to(gradients) @ gradients for part in parts], dim=1)

    def _decode_sum(self, messages: Tensor, shares: Tensor) -> Tensor:
        if not shares.is_complex():
            return weighted_sum(messages, shares)
        real, imaginary = _halves(messages)
        return weighted_sum(real, shares.real) - weighted_sum(imaginary, shares.imag)

    def _tolerance(self, dtype: torch.dtype) -> float:
        if self.tolerance is not None:
            return self.tolerance
        return _TOLERANCES.get(dtype, 4 * torch.finfo(dtype).eps)

    def _error(self, group: range, missing: list[int], tolerance: float) -> DecodeError:
        absent = [group[position] for position in missing]
        reason = f"{len(absent)} messages are missing or not finite"
        if len(absent) <= 2 * self.num_byzantine:
            reason += (
                ", and too many of the others are Byzantine, or honest replicas disagree by more "
                f"than the tolerance, {tolerance:.1e}"
            )
        return DecodeError(
            f"workers {group.start} to {group.stop - 1} cannot be decoded: {reason}; missing: "
            f"{name(absent)}; e missing and b Byzantine messages are tolerated while e + 2 b <= "
            f"{2 * self.num_byzantine}",
            workers=list(group),
            bound=self.num_byzantine,
        )


def _halves(messages: Tensor) -> tuple[Tensor, ...]:
    """Views of the real and of the imaginary parts."""
    workers, width = messages.shape
    return messages.view(workers, 2, width // 2).unbind(1)
