"""Quantisation of activations with a grid per sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from phalanx.bits import check_packed, pack, packed_length, unpack
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.draws import uniforms
from phalanx.compression.message import Part, fixed, num_values
from phalanx.errors import require
from phalanx.floats import working


@dataclass(frozen=True)
class SampleQuantization(Compressor):
    """Rounds activations, or their gradients, to a few levels of a scale of each sample's own.

    The first axis counts samples. The `2^bits` levels are evenly spaced from minus the scale, the
    largest magnitude of the sample, to plus it; none is zero. For differences, which come back to
    what was left over, that beats one level fewer with a zero; for activations that are mostly
    zero, sent as they are, `UniformQuantization` may be better. A scale over the whole micro-batch,
    as in the published code, would let its composition leak into what is remembered of each sample.

    Wire: `bits` bits a value, packed, and four bytes a scale (eight in float64).
    Cost: a few passes.
    Source: Wang, Yuan, Rimanic, He, Dao, Chen, Re, Zhang, "Fine-tuning Language Models over Slow
    Networks using Activation Compression with Guarantees", NeurIPS 2022; with other scales.

    >>> import torch
    >>> compressor = SampleQuantization(bits=2)
    >>> compressor.decode(compressor.encode(torch.tensor([[3.0, 1.5, -0.1], [-0.6, 0.1, 0.0]])))
    tensor([[ 3.0000,  1.0000, -1.0000],
            [-0.6000,  0.2000,  0.2000]])
    """

    bits: int = 8
    """Bits a value takes, its sign among them: 2 to 8; or 32, and values travel as they are."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """`nearest` is closer; `stochastic` is right on average, as the published guarantee wants it,
    and draws from a generator."""
    scale: Literal["sample", "token"] = "sample"
    """What shares a scale: all of a sample, or its last axis, which for sequences is a token."""

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 8 or self.bits == 32):
            raise ValueError(f"bits must be from 2 to 8, or 32, got {self.bits}")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"rounding must be nearest or stochastic, got {self.rounding}")
        if self.scale not in ("sample", "token"):
            raise ValueError(f"scale must be sample or token, got {self.scale}")

    @property
    def num_steps(self) -> int:
        """From minus the scale to plus it: 3, 7, 15, ... 255."""
        return (1 << self.bits) - 1

    @property
    def exact(self) -> bool:
        """Whether values travel as they are."""
        return self.bits == 32

    @property
    def random(self) -> bool:
        """If rounding is stochastic."""
        return self.rounding == "stochastic" and not self.exact

    @property
    def unbiased(self) -> bool:
        """If rounding is stochastic, or there is none."""
        return self.exact or self.random

    @property
    def per_tensor_shape(self) -> bool:
        """True: it says where samples begin."""
        return True

    def contraction(self, dim: int) -> float | None:
        """As if the tensor were one sample; where rounding is to the nearest, and bits are many.

        The largest value is exact, and the others are half a step off at most.
        """
        if self.exact:
            return 1.0
        left = 1 - (dim - 1) / self.num_steps**2
        return left if left > 0 and not self.random else None

    def variance_bound(self, dim: int) -> float | None:
        """As if the tensor were one sample; where rounding is stochastic."""
        if self.exact:
            return 0.0
        return (dim - 1) / self.num_steps**2 if self.random else None

    def _size(self, shape: Shape) -> int:
        """Values that share a scale."""
        return num_values(shape[-1:] if self.scale == "token" else shape[1:])

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Scales, levels of fixed width; or the values."""
        count = num_values(shape)
        if self.exact:
            return (fixed(dtype, count),)
        num_scales, length = count // self._size(shape), packed_length(count, self.bits)
        return fixed(working(dtype), num_scales), fixed(torch.uint8, length)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Levels are numbered from 0, the lowest."""
        if self.exact:
            return (x.reshape(-1).clone(),)
        wide = x.to(working(x.dtype))
        rows = wide.reshape(-1, self._size(tuple(x.shape)))
        scales: Tensor = torch.linalg.vector_norm(rows, torch.inf, dim=1)
        places = rows / torch.where(scales > 0, scales, 1)[:, None]
        places.add_(1).mul_(self.num_steps / 2)
        if self.random:
            places.add_(uniforms(places, generator).view_as(places)).floor_()
        else:
            places.round_()
        codes = places.clamp_(0, self.num_steps).to(torch.uint8)
        return scales, pack(codes.view(-1), self.bits)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Every level times its scale; the scale itself where the level is the last."""
        if self.exact:
            return parts[0]
        scales, packed = parts
        codes = unpack(packed, self.bits, num_values(shape)).view(len(scales), -1)
        shares = codes.to(scales.dtype).mul_(2).sub_(self.num_steps).div_(self.num_steps)
        return shares.mul_(scales[:, None])

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Scales are not negative; every number of so many bits is a level."""
        if not self.exact:
            require(bool((parts[0] >= 0).all()), "have scales of at least 0")
            check_packed(parts[1], self.bits, num_values(shape))
