"""Random rounding to a few levels, right on average."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from phalanx.compression.base import Shape, uniforms, working
from phalanx.compression.bits import check_packed, pack, packed_length, unpack
from phalanx.compression.elias import decode_omega, encode_omega
from phalanx.compression.grid import Norm, norms, num_buckets, share
from phalanx.compression.message import Part, fixed, num_values, require
from phalanx.compression.quantization import GridQuantizer

_LONGEST = 42  # bits of the omega code of a number below 2**31


@dataclass(frozen=True)
class QSGD(GridQuantizer):
    """Rounds every value, at random, to one of the two levels of its bucket next to it.

    Unbiased: it goes up with the probability that makes up for going down. The squared error is at
    most `min(size / levels^2, sqrt(size) / levels)` of the squared norm, with buckets of `size`.
    Wire: a scale for each bucket, and all levels in as few bits as hold any of them; or, where most
    levels are zero, the gaps between the others and their heights in Elias's omega code.
    Cost: a few passes.
    Source: Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient
    Quantization and Encoding", NeurIPS 2017, section 3.

    >>> import torch
    >>> compressor = QSGD(levels=1, norm="max")
    >>> x = torch.tensor([2.0, 0.0, -2.0])
    >>> compressor.decode(compressor.encode(x, torch.Generator().manual_seed(0)))
    tensor([ 2.,  0., -2.])
    """

    levels: int = 7
    """Levels above zero (s): 1, 3, 7, ... 127 fill 2, 3, 4, ... 8 bits a value."""
    norm: Norm = "l2"
    """Scale of a bucket: its Euclidean norm, or its largest magnitude, which rounds less and leaves
    fewer zeros."""
    coding: Literal["fixed", "elias"] = "fixed"
    """All levels in equally many bits, or non-zero ones only in a code of varying length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.levels <= 127:
            raise ValueError(f"levels must be from 1 to 127, got {self.levels}")

    @property
    def num_levels(self) -> int:
        """`levels`."""
        return self.levels

    @property
    def random(self) -> bool:
        """True."""
        return True

    @property
    def unbiased(self) -> bool:
        """True."""
        return True

    @property
    def fixed_size(self) -> bool:
        """Unless Elias's code is used."""
        return self.coding == "fixed"

    def variance_bound(self, dim: int) -> float | None:
        """`min(size / levels^2, sqrt(size) / levels)`, for either norm."""
        size = min(dim, self.bucket_size)
        return min(size / self.levels**2, math.sqrt(size) / self.levels)

    def quantize(
        self, rows: Float[Tensor, "buckets size"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, " buckets"], Int16[Tensor, "buckets size"]]:
        """Up with the probability of the fraction above the lower level."""
        scales = norms(rows, self.norm)
        heights = (share(rows, scales) * self.levels).clamp_(max=self.levels)
        lower = heights.floor()
        raised = lower + (uniforms(rows, generator).view_as(rows) < heights - lower)
        return scales, torch.copysign(raised, rows).to(torch.int16)

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Scales and levels; or scales, number of non-zero levels, gaps, heights and signs."""
        if self.coding == "fixed":
            return super().layout(shape, dtype)
        dim = num_values(shape)
        scales = fixed(working(dtype), num_buckets(dim, self.bucket_size))
        codes = Part(torch.uint8, 0, packed_length(dim * _LONGEST, 1))
        signs = Part(torch.uint8, 0, packed_length(dim, 1))
        return scales, fixed(torch.int64, 1), codes, codes, signs

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Elias's code is written on the CPU."""
        if self.coding == "fixed":
            return super().pack(x, generator)
        scales, rows = self.quantized(x.view(-1), generator)
        codes = rows.view(-1)[: x.numel()]
        indices = codes.nonzero().flatten()
        chosen = codes[indices].long()
        gaps = indices.diff(prepend=indices.new_tensor([-1]))
        count = torch.tensor([indices.numel()], device=x.device)
        signs = pack((chosen < 0).to(torch.uint8), 1)
        return scales, count, _omega(gaps), _omega(chosen.abs()), signs

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Zeros, but where a level was sent."""
        if self.coding == "fixed":
            return super().unpack(parts, shape, dtype)
        scales, count, gaps, heights, signs = parts
        dim, number = num_values(shape), int(count)
        codes = torch.zeros(dim, dtype=torch.int16, device=scales.device)
        indices = _numbers(gaps, number).cumsum(0) - 1
        negative = unpack(signs, 1, number).bool()
        chosen = _numbers(heights, number)
        codes[indices] = torch.where(negative, -chosen, chosen).to(torch.int16)
        return self.values(codes, scales, dim)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Also that codes are whole, inside the tensor, and of levels that exist."""
        if self.coding == "fixed":
            super().check(parts, shape, dtype)
            return
        scales, count, gaps, heights, signs = parts
        number = int(count)
        require(bool((scales >= 0).all()), "have scales of at least 0")
        require(
            0 <= number <= num_values(shape), "state as many levels as there are values at most"
        )
        require(signs.numel() == packed_length(number, 1), "have a sign for each level")
        check_packed(signs, 1, number)
        last = int(_numbers(gaps, number).sum()) - 1
        require(last < num_values(shape), "have its levels inside the tensor")
        top = int(_numbers(heights, number).max()) if number else 0
        require(top <= self.levels, f"have levels of at most {self.levels}")


def _omega(numbers: Tensor) -> Tensor:
    bits = encode_omega(numbers.cpu().numpy())
    return torch.from_numpy(np.packbits(bits)).to(numbers.device)


def _numbers(packed: Tensor, count: int) -> Tensor:
    """The numbers of a stream of omega codes, which ends within its last byte, in zeros."""
    bits = np.unpackbits(packed.cpu().numpy())
    return torch.from_numpy(decode_omega(bits, count)).to(packed.device)
