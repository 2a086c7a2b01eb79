"""Codes for quantisation levels, of fixed or of varying length."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int8
from torch import Tensor

from phalanx.bits import check_packed, pack, packed_length, unpack
from phalanx.compression.elias import decode_gamma, decode_omega, encode_gamma, encode_omega
from phalanx.compression.message import Message, Part, fixed, parse
from phalanx.errors import require

Integers = Literal["omega", "gamma"]

_LONGEST = 61  # bits of the gamma code of a number below 2**31; omega's has 42


@dataclass(frozen=True)
class LevelCode(ABC):
    """How levels, small whole numbers with a sign, are written into parts of a message."""

    top: int
    """The highest level."""

    @abstractmethod
    def layout(self, dim: int) -> tuple[Part, ...]:
        """What is known of the parts of so many levels."""

    @abstractmethod
    def write(self, codes: Int8[Tensor, " dim"]) -> tuple[Tensor, ...]:
        """The parts; the levels may be overwritten."""

    @abstractmethod
    def read(self, parts: Sequence[Tensor], dim: int) -> Int8[Tensor, " dim"]:
        """The levels."""

    @abstractmethod
    def check(self, parts: Sequence[Tensor], dim: int) -> None:
        """Raises a `WireError` unless these are the parts of `dim` levels of at most `top`."""

    @abstractmethod
    def num_bits(self, counts: Sequence[int]) -> int:
        """About what the parts take, given how many levels are of each height from 0 on."""


@dataclass(frozen=True)
class FixedLevels(LevelCode):
    """All levels in as few bits as hold any of them."""

    @property
    def width(self) -> int:
        """Bits a level takes, its sign among them."""
        return (2 * self.top).bit_length()

    def layout(self, dim: int) -> tuple[Part, ...]:
        """Levels."""
        return (fixed(torch.uint8, packed_length(dim, self.width)),)

    def write(self, codes: Int8[Tensor, " dim"]) -> tuple[Tensor, ...]:
        """Levels are packed as numbers from 0 on."""
        # Levels below zero wrap around, and back.
        return (pack(codes.view(torch.uint8).add_(self.top), self.width),)

    def read(self, parts: Sequence[Tensor], dim: int) -> Int8[Tensor, " dim"]:
        """The numbers, less the highest level."""
        return unpack(parts[0], self.width, dim).sub_(self.top).view(torch.int8)

    def check(self, parts: Sequence[Tensor], dim: int) -> None:
        """There are no levels beyond the last."""
        check_packed(parts[0], self.width, dim)
        highest = int(unpack(parts[0], self.width, dim).max())
        require(highest <= 2 * self.top, f"have levels of at most {2 * self.top}")

    def num_bits(self, counts: Sequence[int]) -> int:
        """The same for all levels."""
        return self.width * sum(counts)


@dataclass(frozen=True)
class _EliasLevels(LevelCode):
    """In one of Elias's codes, which are written and read on the CPU."""

    integers: Integers = "omega"
    """Elias's code of the numbers."""

    def _encode(self, numbers: Tensor) -> Tensor:
        encode = encode_omega if self.integers == "omega" else encode_gamma
        bits = encode(numbers.cpu().numpy())
        return torch.from_numpy(np.packbits(bits)).to(numbers.device)

    def _decode(self, packed: Tensor, count: int) -> Tensor:
        """The numbers of a stream, which ends within its last byte, in zeros."""
        decode = decode_omega if self.integers == "omega" else decode_gamma
        return torch.from_numpy(decode(np.unpackbits(packed.cpu().numpy()), count)).to(
            packed.device
        )


@dataclass(frozen=True)
class SparseLevels(_EliasLevels):
    """Gaps between levels that are not zero, their heights, and their signs."""

    def layout(self, dim: int) -> tuple[Part, ...]:
        """Number of levels, gaps, heights, signs."""
        codes = Part(torch.uint8, 0, packed_length(dim * _LONGEST, 1))
        return fixed(torch.int64, 1), codes, codes, Part(torch.uint8, 0, packed_length(dim, 1))

    def write(self, codes: Int8[Tensor, " dim"]) -> tuple[Tensor, ...]:
        """Gaps are one for neighbours."""
        indices = codes.nonzero().flatten()
        chosen = codes[indices].long()
        gaps = indices.diff(prepend=indices.new_tensor([-1]))
        count = torch.tensor([indices.numel()], device=codes.device)
        signs = pack((chosen < 0).to(torch.uint8), 1)
        return count, self._encode(gaps), self._encode(chosen.abs()), signs

    def read(self, parts: Sequence[Tensor], dim: int) -> Int8[Tensor, " dim"]:
        """Zeros, but where a level was sent."""
        count, gaps, heights, signs = parts
        number = int(count)
        codes = torch.zeros(dim, dtype=torch.int8, device=gaps.device)
        negative = unpack(signs, 1, number).bool()
        chosen = self._decode(heights, number)
        places = self._decode(gaps, number).cumsum(0) - 1
        codes[places] = torch.where(negative, -chosen, chosen).to(torch.int8)
        return codes

    def check(self, parts: Sequence[Tensor], dim: int) -> None:
        """Levels exist, stand inside the tensor, and have a sign each."""
        count, gaps, heights, signs = parts
        number = int(count)
        require(0 <= number <= dim, "state as many levels as there are values at most")
        require(signs.numel() == packed_length(number, 1), "have a sign for each level")
        check_packed(signs, 1, number)
        last = int(self._decode(gaps, number).sum()) - 1
        require(last < dim, "have its levels inside the tensor")
        highest = int(self._decode(heights, number).max()) if number else 0
        require(highest <= self.top, f"have levels of at most {self.top}")

    def num_bits(self, counts: Sequence[int]) -> int:
        """As if levels that are not zero stood at random."""
        number = sum(counts[1:])
        if not number:
            return 160
        zeros = 1 - number / sum(counts)
        # How long a code is depends on the number of digits alone.
        gap = sum(
            (zeros ** ((1 << digits) - 1) - zeros ** ((2 << digits) - 1))
            * _num_bits(self.integers, 1 << digits)
            for digits in range(31)
        )
        heights = sum(few * _num_bits(self.integers, one) for one, few in enumerate(counts) if one)
        return round(number * (gap + 1)) + heights + 160


@dataclass(frozen=True)
class DenseLevels(_EliasLevels):
    """The heights of all levels, and the signs of those that are not zero."""

    def layout(self, dim: int) -> tuple[Part, ...]:
        """Heights, signs."""
        most = packed_length(dim * _LONGEST, 1)
        return Part(torch.uint8, 0, most), Part(torch.uint8, 0, packed_length(dim, 1))

    def write(self, codes: Int8[Tensor, " dim"]) -> tuple[Tensor, ...]:
        """Codes are of numbers from one on."""
        chosen = codes[codes != 0]
        return self._encode(codes.long().abs() + 1), pack((chosen < 0).to(torch.uint8), 1)

    def read(self, parts: Sequence[Tensor], dim: int) -> Int8[Tensor, " dim"]:
        """Heights with their signs."""
        codes = (self._decode(parts[0], dim) - 1).to(torch.int8)
        places = codes.nonzero().flatten()
        negative = places[unpack(parts[1], 1, len(places)).bool()]
        codes[negative] = -codes[negative]
        return codes

    def check(self, parts: Sequence[Tensor], dim: int) -> None:
        """Levels exist, and have a sign each where they are not zero."""
        heights = self._decode(parts[0], dim) - 1
        require(int(heights.max()) <= self.top, f"have levels of at most {self.top}")
        number = int((heights > 0).sum())
        require(parts[1].numel() == packed_length(number, 1), "have a sign for each level")
        check_packed(parts[1], 1, number)

    def num_bits(self, counts: Sequence[int]) -> int:
        """Exactly, but for what fills up last bytes."""
        heights = sum(few * _num_bits(self.integers, one + 1) for one, few in enumerate(counts))
        return heights + sum(counts[1:]) + 64


@dataclass(frozen=True)
class ShortestLevels(LevelCode):
    """Whichever of the others is shortest by what it is about to take; a byte says which."""

    integers: Integers = "omega"
    """Elias's code of the numbers, in those that use it."""

    @property
    def codes(self) -> tuple[LevelCode, ...]:
        """To choose from."""
        return (
            FixedLevels(self.top),
            SparseLevels(self.top, self.integers),
            DenseLevels(self.top, self.integers),
        )

    def layout(self, dim: int) -> tuple[Part, ...]:
        """Which code, and the bytes of its parts."""
        return fixed(torch.uint8, 1), Part(torch.uint8, 0, self._most(dim))

    def write(self, codes: Int8[Tensor, " dim"]) -> tuple[Tensor, ...]:
        """Heights are counted; the code that needs the fewest bits for them writes."""
        counts = torch.bincount(codes.abs().int(), minlength=self.top + 1).tolist()
        bits = [code.num_bits(counts) for code in self.codes]
        chosen = bits.index(min(bits))
        inside = self._written(chosen, codes)
        if inside.numel() > self._most(codes.numel()):  # gaps that differ much take more bits
            chosen, inside = 0, self._written(0, codes)
        return torch.tensor([chosen], dtype=torch.uint8, device=codes.device), inside

    def read(self, parts: Sequence[Tensor], dim: int) -> Int8[Tensor, " dim"]:
        """As the code that was chosen."""
        code = self.codes[int(parts[0])]
        return code.read(parse(parts[1], (dim,), torch.int8, code.layout(dim)).parts, dim)

    def check(self, parts: Sequence[Tensor], dim: int) -> None:
        """The code exists, and the bytes are of it."""
        require(int(parts[0]) < len(self.codes), "name a code that exists")
        code = self.codes[int(parts[0])]
        code.check(parse(parts[1], (dim,), torch.int8, code.layout(dim)).parts, dim)

    def num_bits(self, counts: Sequence[int]) -> int:
        """Those of the shortest."""
        return min(code.num_bits(counts) for code in self.codes) + 40

    def _most(self, dim: int) -> int:
        """Bytes of levels of fixed width."""
        return packed_length(dim, FixedLevels(self.top).width)

    def _written(self, chosen: int, codes: Int8[Tensor, " dim"]) -> Tensor:
        """The bytes of one of the codes."""
        code, dim = self.codes[chosen], codes.numel()
        return Message((dim,), torch.int8, code.layout(dim), code.write(codes)).to_tensor()


@cache
def _num_bits(integers: Integers, number: int) -> int:
    """Of a number's code."""
    encode = encode_omega if integers == "omega" else encode_gamma
    return len(encode(np.array([number])))
