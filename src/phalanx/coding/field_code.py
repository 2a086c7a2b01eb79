"""Cyclic code over a prime field: exact to the bit, without a tolerance."""

import math
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int32, Int64, Shaped
from torch import Tensor

from phalanx.coding.base import Decoded, State
from phalanx.coding.fixed_point import (
    HEADER,
    LOWEST,
    Magnitudes,
    first_bits,
    headers,
    magnitudes,
    next_bits,
    whole,
)
from phalanx.coding.groups import check_messages, check_owned, check_partitions, name
from phalanx.coding.prime_field import BLOCK, LARGEST, PRIME, halves, product, project, reduced
from phalanx.coding.reed_solomon import encoding_weights, locate, reader
from phalanx.columns import column_blocks
from phalanx.errors import DecodeError

_MALFORMED = torch.iinfo(torch.int32).min  # no number of the field
_PROJECTIONS = 2
_BITS = "code.fraction_bits"


@dataclass(frozen=True)
class FieldCode:
    """Cyclic code of `DracoCyclic(arithmetic="field")`: circles of workers, modulo 2^31 - 1.

    Guarantee, for each circle: if replicas of a gradient are equal to the bit, e messages are
    missing and b workers are Byzantine with `e + 2 b <= 2 s`, then the gradient is bit for bit that
    of the run without faults, and exactly those workers are named whose messages differ from the
    honest ones in any bit. Both hold with certainty, whatever Byzantine workers know and agree on,
    if none of their b deviations vanishes in the decoder's secret projections; one does with
    probability at most 2^-56 in a round, over randomness that is drawn after the messages came in.
    Nothing else is assumed: no size of lies, no tolerance.

    If more than that is wrong: a deviation of `s < b <= 2 s` workers of a circle is decoded wrongly
    only where it lies within the bound of another word of the code, which takes at least
    `2 s + 1 - e` workers that differ from the truth or are named, hence collusion. Otherwise, a
    `DecodeError`.

    A message is the gradient's coordinates and a header (see `fixed_point`), `(width,)` int32: a
    weighted sum, modulo p, of the whole numbers that the partitions' gradients were rounded to.
    A message with a number that is not from `-(p - 1) / 2` to `(p - 1) / 2` is malformed: its
    sender is marked, and it counts as missing. So does that of gradients that are not finite.
    """

    groups: tuple[range, ...]
    """The circles."""

    num_byzantine: int
    """Byzantine workers tolerated in each circle."""

    fraction_bits: int | None = None
    """Bits after the binary point; None for those before the first round."""

    @cached_property
    def limit(self) -> int:
        """Largest whole number of a partition: the sum of those of a circle stays in the field."""
        return LARGEST // max(map(len, self.groups))

    @property
    def bits(self) -> int:
        """Bits after the binary point."""
        return first_bits(self.limit) if self.fraction_bits is None else self.fraction_bits

    @cached_property
    def weights(self) -> Int64[Tensor, "workers partitions"]:
        """Row i makes the message of worker i; from 0 to p - 1."""
        blocks = [_weights(len(group), 2 * self.num_byzantine) for group in self.groups]
        weights: Tensor = torch.block_diag(*blocks)
        return weights

    def encode(self, worker: int, gradients: Float[Tensor, "owned dim"]) -> Int32[Tensor, " width"]:
        """See `Code.encode`."""
        owned = self.weights[worker].nonzero().flatten()
        check_owned(len(gradients), len(owned), worker)
        message = _empty(1, gradients)
        broken = self._add(message, self.weights[worker, owned][None], gradients)
        return message[0].fill_(_MALFORMED) if broken.any() else message[0]

    def encode_all(
        self, blocks: Iterable[Float[Tensor, "_ dim"]]
    ) -> Int32[Tensor, "workers width"]:
        """See `Code.encode_all`."""
        number = len(self.weights)
        messages, broken = torch.empty(0, 0), torch.zeros(number, dtype=torch.bool)
        first = 0
        for gradients in blocks:
            if first == 0:
                messages = _empty(number, gradients)
            last = first + len(gradients)
            check_partitions(last, number, complete=False)
            for group in self.groups:
                start, stop = max(group.start, first), min(group.stop, last)
                if start < stop:
                    circle = slice(group.start, group.stop)
                    part = gradients[start - first : stop - first]
                    shares = self.weights[circle, start:stop]
                    broken[circle] |= self._add(messages[circle], shares, part)
            first = last
        check_partitions(first, number)
        messages[broken] = _MALFORMED
        return messages

    def _add(
        self,
        messages: Int32[Tensor, "rows width"],
        shares: Int64[Tensor, "rows partitions"],
        gradients: Float[Tensor, "partitions dim"],
    ) -> Bool[Tensor, " rows"]:
        """Adds weighted sums to messages, in place; says into which went what is not finite."""
        header, finite = headers(gradients, self.bits, self.limit)
        senders = shares.any(dim=1).nonzero().flatten()
        split = halves(shares[senders]).to(messages.device)
        senders, everybody = senders.to(messages.device), len(senders) == len(messages)
        dim = gradients.shape[1]

        def add(columns: slice, numbers: Tensor) -> None:
            room = messages[:, columns]
            total = product(split, numbers)
            if everybody:
                room.copy_(reduced(total.add_(room)))
            else:
                total = reduced(total.add_(room.index_select(0, senders)))
                room.index_copy_(0, senders, total.int())

        for columns in column_blocks(dim, max(1, BLOCK // max(map(len, (messages, gradients))))):
            numbers = whole(gradients[:, columns], self.bits, self.limit)
            if not finite.all():
                numbers[~finite] = 0
            add(columns, numbers)
        add(slice(dim, dim + HEADER), header.double().to(messages.device))
        return shares[:, ~finite].any(dim=1)

    def decode(
        self,
        messages: Shaped[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """The mean gradient in float32, and who is Byzantine; see `Code.decode`."""
        return self._decode(messages, arrived, torch.float32, generator)[0]

    def init(self, dtype: torch.dtype, device: torch.device | str) -> State:
        """Where the binary point is in the next round, in the gradient's dtype; if it was moved."""
        return (
            torch.tensor(float(self.bits), dtype=dtype, device=device),
            torch.tensor(False, device=device),
        )

    def broadcast(self, state: State) -> dict[str, Tensor]:
        """What workers are told: where the binary point is."""
        return {_BITS: state[0]}

    def informed(self, extra: Mapping[str, Tensor]) -> "FieldCode":
        """The code of a round with this broadcast."""
        if _BITS not in extra or self.fraction_bits is not None:
            return self
        return replace(self, fraction_bits=int(extra[_BITS]))

    def update(
        self,
        messages: Shaped[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None,
        state: State,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Decoded, State]:
        """See `Code.update`."""
        bits, moved = state
        code = self.informed(self.broadcast(state))
        decoded, seen = code._decode(messages, arrived, bits.dtype, generator)
        following = code.bits
        if self.fraction_bits is None:
            following = next_bits(following, seen, first=not moved)
        return decoded, (torch.full_like(bits, following), torch.ones_like(moved))

    def _decode(
        self,
        messages: Shaped[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> tuple[Decoded, Magnitudes]:
        if arrived is None:
            arrived = torch.ones(len(messages), dtype=torch.bool)
        number = self.groups[-1].stop
        check_messages(messages, arrived, number)
        _check_kind(messages)
        generator = generator or torch.Generator().manual_seed(secrets.randbits(63))
        here = arrived.cpu()
        usable = here & ~_malformed(messages, here)
        suspects = here & ~usable
        projections = project(messages, _PROJECTIONS, generator)
        readers = []
        for group in self.groups:
            erased = [place for place, worker in enumerate(group) if not usable[worker]]
            found = self._locate(projections[group.start : group.stop], erased)
            if found is None:
                raise self._error(group, erased)
            suspects[[group[place] for place in found]] = True
            readers.append(self._reader(len(group), [*erased, *found]))
        dim = messages.shape[1] - HEADER
        gradient = messages.new_empty(dim, dtype=dtype)
        unit = 2.0**-self.bits / number
        for columns, total in _sums(messages[:, :dim], self.groups, readers):
            gradient[columns] = total.mul_(unit)
        ((_, header),) = _sums(messages[:, dim:], self.groups, readers)
        seen = magnitudes(header.long().cpu())
        error = self._error_bound(gradient, seen)
        return Decoded(
            gradient, suspects.to(messages.device), 0.0, error, saturated=seen.saturated
        ), seen

    def _locate(
        self, projections: Int64[Tensor, "length projections"], erased: list[int]
    ) -> list[int] | None:
        """Places of the Byzantine workers of a circle: all that any projection shows."""
        found: set[int] = set()
        for projection in projections.T:
            shown = locate(projection, 2 * self.num_byzantine, erased)
            if shown is None:
                return None
            found |= set(shown)
        most = (2 * self.num_byzantine - len(erased)) // 2
        return sorted(found) if len(found) <= most else None

    def _reader(self, length: int, unread: Sequence[int]) -> Int64[Tensor, " length"]:
        """What the circle's sum is read with; as many rows as possible are not read at all."""
        spare = [place for place in range(length) if place not in set(unread)]
        return reader(length, [*unread, *spare[: 2 * self.num_byzantine - len(unread)]])

    def _error_bound(self, gradient: Tensor, seen: Magnitudes) -> float:
        """`Decoded.error`: what rounding to whole numbers, and cutting them down, may have cost.

        The root mean square of the partitions' norms, by which it is divided, is at least the norm
        of the mean, and at least the largest coordinate of all divided by the root of their number.
        """
        if seen.highest is None:
            return 0.0
        if seen.unbounded and seen.saturated:
            return math.inf
        number, unit = self.groups[-1].stop, 2.0**-self.bits
        largest = self.limit * unit * 2.0**seen.highest
        cost = math.sqrt(gradient.numel()) * unit / 2
        cost += math.sqrt(seen.saturated / number) * largest
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64).item()
        size = max(norm - cost, largest / 2 / math.sqrt(number) if seen.highest > LOWEST else 0.0)
        return cost / size if size > 0 else 1.0

    def _error(self, group: range, erased: Sequence[int]) -> DecodeError:
        missing = [group[place] for place in erased]
        checks = 2 * self.num_byzantine
        more = ""
        if len(missing) <= checks:
            more = (
                ", and too many of the others are Byzantine, or honest replicas differ in a bit "
                "of a gradient"
            )
        return DecodeError(
            f"workers {group.start} to {group.stop - 1} cannot be decoded: {len(missing)} messages "
            f"are missing or malformed{more}; missing: {name(missing)}; e missing and b Byzantine "
            f"messages are tolerated while e + 2 b <= {checks}",
            workers=list(group),
            bound=self.num_byzantine,
        )


def forged(values: Shaped[Tensor, "..."]) -> Int32[Tensor, "..."]:
    """What a Byzantine worker sends that made up these numbers: rounded, modulo p.

    NaN and infinity become what is malformed.
    """
    sent = torch.remainder(values.double().round(), PRIME)
    sent = torch.where(sent > LARGEST, sent - PRIME, sent)
    return torch.where(values.isfinite(), sent, _MALFORMED).int()


@lru_cache(maxsize=64)
def _weights(length: int, num_checks: int) -> Tensor:
    return encoding_weights(length, num_checks)


def _empty(rows: int, gradients: Tensor) -> Tensor:
    return gradients.new_zeros(rows, gradients.shape[1] + HEADER, dtype=torch.int32)


def _check_kind(messages: Tensor) -> None:
    if messages.dtype != torch.int32 or messages.shape[1] < HEADER:
        raise ValueError(
            f"messages must be int32, at least {HEADER} wide, with arithmetic='field', got "
            f"{messages.dtype} {messages.shape[1]} wide"
        )


def _malformed(messages: Tensor, asked: Tensor) -> Tensor:
    """Which of the messages that are asked for hold what is no number of the field."""
    found = torch.zeros(len(messages), dtype=torch.bool)
    for worker in asked.nonzero().flatten().tolist():
        low, high = messages[worker].aminmax()
        found[worker] = bool(low < -LARGEST) or bool(high > LARGEST)
    return found


def _sums(
    messages: Shaped[Tensor, "workers width"],
    groups: Sequence[range],
    readers: Sequence[Int64[Tensor, " length"]],
) -> Iterator[tuple[slice, Float[Tensor, " columns"]]]:
    """The sums of all partitions' numbers, some columns at a time, in float64."""
    used = [coefficients.nonzero().flatten() for coefficients in readers]
    rows = [
        (mine + group.start).to(messages.device) for mine, group in zip(used, groups, strict=True)
    ]
    split = [
        halves(coefficients[mine][None]).to(messages.device)
        for mine, coefficients in zip(used, readers, strict=True)
    ]
    for columns in column_blocks(messages.shape[1], max(1, BLOCK // max(map(len, used)))):
        part = messages[:, columns]
        total = messages.new_zeros(part.shape[1], dtype=torch.float64)
        for mine, coefficients in zip(rows, split, strict=True):
            total += reduced(product(coefficients, part.index_select(0, mine).double())[0])
        yield columns, total
