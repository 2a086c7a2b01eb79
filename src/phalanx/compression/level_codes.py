"""Quantised levels in codes of varying length: short where most levels are zero, or small."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int8
from torch import Tensor

from phalanx.compression.bits import check_packed, pack, packed_length, unpack
from phalanx.compression.elias import decode_gamma, decode_omega, encode_gamma, encode_omega
from phalanx.compression.message import Part, fixed, require

Integers = Literal["omega", "gamma"]

_LONGEST = 61  # bits of the gamma code of a number below 2**31; omega's has 42


@dataclass(frozen=True)
class LevelCode(ABC):
    """How levels, small whole numbers with a sign, are written into parts of a message.

    Elias's codes are written and read on the CPU.
    """

    integers: Integers = "omega"
    """Elias's code of the numbers."""

    @abstractmethod
    def layout(self, dim: int) -> tuple[Part, ...]:
        """What is known of the parts of so many levels."""

    @abstractmethod
    def write(self, codes: Int8[Tensor, " dim"]) -> tuple[Tensor, ...]:
        """The parts."""

    @abstractmethod
    def read(self, parts: Sequence[Tensor], dim: int) -> Int8[Tensor, " dim"]:
        """The levels."""

    @abstractmethod
    def check(self, parts: Sequence[Tensor], dim: int, top: int) -> None:
        """Raises a `WireError` unless these are the parts of `dim` levels of at most `top`."""

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
class SparseLevels(LevelCode):
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

    def check(self, parts: Sequence[Tensor], dim: int, top: int) -> None:
        """Levels exist, stand inside the tensor, and have a sign each."""
        count, gaps, heights, signs = parts
        number = int(count)
        require(0 <= number <= dim, "state as many levels as there are values at most")
        require(signs.numel() == packed_length(number, 1), "have a sign for each level")
        check_packed(signs, 1, number)
        last = int(self._decode(gaps, number).sum()) - 1
        require(last < dim, "have its levels inside the tensor")
        highest = int(self._decode(heights, number).max()) if number else 0
        require(highest <= top, f"have levels of at most {top}")


@dataclass(frozen=True)
class DenseLevels(LevelCode):
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

    def check(self, parts: Sequence[Tensor], dim: int, top: int) -> None:
        """Levels exist, and have a sign each where they are not zero."""
        heights = self._decode(parts[0], dim) - 1
        require(int(heights.max()) <= top, f"have levels of at most {top}")
        number = int((heights > 0).sum())
        require(parts[1].numel() == packed_length(number, 1), "have a sign for each level")
        check_packed(parts[1], 1, number)
