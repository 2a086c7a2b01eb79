"""What quantisers on a grid share: scales, packed levels, and how they are read."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from phalanx.compression.base import Compressor, Shape, working
from phalanx.compression.bits import check_packed, empty, pack, packed_length, unpack
from phalanx.compression.draws import Uniforms
from phalanx.compression.grid import buckets, num_buckets, values
from phalanx.compression.message import Part, fixed, num_values, require

_BLOCK = 1 << 17  # values at a time: they stay in the cache


@dataclass(frozen=True)
class GridQuantizer(Compressor):
    """Cuts a tensor into buckets, each with a scale, and sends every value as a small level."""

    bucket_size: int = 512
    """Neighbouring values that share one scale; a tensor with fewer values is one bucket."""

    def __post_init__(self) -> None:
        if self.bucket_size < 1:
            raise ValueError(f"bucket_size must be at least 1, got {self.bucket_size}")

    @property
    @abstractmethod
    def num_levels(self) -> int:
        """Levels above zero."""

    @abstractmethod
    def scales(self, rows: Float[Tensor, "buckets size"]) -> Float[Tensor, " buckets"]:
        """The scale of every bucket, at least 0."""

    @abstractmethod
    def round(
        self,
        heights: Float[Tensor, "buckets size"],
        draws: Float[Tensor, "buckets size"] | None,
    ) -> None:
        """Rounds heights from 0 to `num_levels`, in place; with draws, if there is a generator."""

    def quantized(
        self, flat: Float[Tensor, " dim"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, " buckets"], Int8[Tensor, "buckets size"]]:
        """Scales, and levels from `-num_levels` to `num_levels`: block by block."""
        size = min(self.bucket_size, flat.numel())
        number = num_buckets(flat.numel(), size)
        wide = working(flat.dtype)
        draws = None
        if generator is not None and self.random:
            draws = Uniforms(wide, generator, flat.device)
        depth = max(1, _BLOCK // size) if flat.device.type == "cpu" else number
        codes = torch.empty(number, size, dtype=torch.int8, device=flat.device)
        heights, drawn = torch.empty(
            2, min(depth, number) * size, dtype=wide, device=flat.device
        ).unbind()
        scales = []
        for start in range(0, number, depth):
            place = start * size
            block = buckets(flat[place : place + depth * size], size)
            found = self.scales(block)
            # A bucket of zeros has a step, too, and a scale near zero one that is not zero.
            steps = (found / self.num_levels).clamp_(min=torch.finfo(wide).tiny)
            height = heights[: block.numel()].view_as(block)
            torch.div(block, steps[:, None], out=height).abs_().clamp_(max=self.num_levels)
            draw = None
            if draws is not None:
                draw = draws.take(block.numel(), drawn[: block.numel()]).view_as(block)
            self.round(height, draw)
            codes[start : start + depth] = height.copysign_(block)
            scales.append(found)
        return torch.cat(scales), codes

    @property
    def width(self) -> int:
        """Bits a level takes, its sign among them."""
        return (2 * self.num_levels).bit_length()

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Scales, levels of fixed width."""
        dim = num_values(shape)
        scales = fixed(working(dtype), num_buckets(dim, self.bucket_size))
        return scales, fixed(torch.uint8, packed_length(dim, self.width))

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Levels are packed as numbers from 0 on."""
        scales, codes = self.quantized(x.view(-1), generator)
        # Levels below zero wrap around, and back.
        shifted = codes.view(-1)[: x.numel()].view(torch.uint8).add_(self.num_levels)
        return scales, pack(shifted, self.width)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Every level times its bucket's scale."""
        scales, packed = parts
        dim = num_values(shape)
        codes = unpack(packed, self.width, dim).sub_(self.num_levels).view(torch.int8)
        return self.values(codes, scales, dim)

    def values(self, codes: Int8[Tensor, " dim"], scales: Tensor, dim: int) -> Tensor:
        """What levels stand for, given the scales of their buckets."""
        size = min(self.bucket_size, dim)
        found = empty(len(scales) * size, scales)
        whole = dim // size * size
        values(codes[:whole].view(-1, size), scales, self.num_levels, found[:whole].view(-1, size))
        if whole < dim:
            last = torch.nn.functional.pad(codes[whole:], (0, size - dim + whole))
            values(last[None], scales[-1:], self.num_levels, found[whole:][None])
        return found[:dim]

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Scales are not negative, and there are no levels beyond the last."""
        scales, packed = parts
        dim = num_values(shape)
        require(bool((scales >= 0).all()), "have scales of at least 0")
        check_packed(packed, self.width, dim)
        top = int(unpack(packed, self.width, dim).max())
        require(top <= 2 * self.num_levels, f"have levels of at most {2 * self.num_levels}")
