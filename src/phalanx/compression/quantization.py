"""Base of quantisers on a grid: scales and packed levels."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from phalanx.bits import empty
from phalanx.checks import require_at_least
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.draws import Uniforms
from phalanx.compression.grid import buckets, num_buckets, values
from phalanx.compression.level_codes import FixedLevels, LevelCode
from phalanx.compression.message import Part, fixed, num_values
from phalanx.errors import require
from phalanx.floats import working

_BLOCK = 1 << 17  # values at a time: they stay in the cache


@dataclass(frozen=True)
class GridQuantizer(Compressor):
    """Cuts a tensor into buckets, each with a scale, and sends every value as a small level."""

    bucket_size: int = 512
    """Neighbouring values that share one scale; a tensor with fewer values is one bucket."""

    def __post_init__(self) -> None:
        require_at_least(1, bucket_size=self.bucket_size)

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
        codes = empty(number * size, flat.new_empty(0, dtype=torch.int8)).view(number, size)
        heights, drawn = flat.new_empty(2, min(depth, number) * size, dtype=wide).unbind()
        scales = []
        for start in range(0, number, depth):
            place = start * size
            block = buckets(flat[place : place + depth * size], size)
            found = self.scales(block)
            # A bucket of zeros has a step, too, and a scale near zero one that is not zero.
            steps = (found / self.num_levels).clamp_(min=torch.finfo(wide).tiny)
            height, room = (one[: block.numel()].view_as(block) for one in (heights, drawn))
            torch.div(block, steps[:, None], out=height).abs_().clamp_(max=self.num_levels)
            draw = None
            if draws is not None:
                draw = draws.take(block.numel(), room.view(-1)).view_as(block)
            self.round(height, draw)
            codes[start : start + depth] = _with_signs(height, block, room)
            scales.append(found)
        return torch.cat(scales), codes

    @property
    def code(self) -> LevelCode:
        """How levels are written."""
        return FixedLevels(self.num_levels)

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Scales, levels."""
        dim = num_values(shape)
        scales = fixed(working(dtype), num_buckets(dim, self.bucket_size))
        return scales, *self.code.layout(dim)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """As the code says."""
        scales, rows = self.quantized(x.view(-1), generator)
        return scales, *self.code.write(rows.view(-1)[: x.numel()])

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Every level times its bucket's scale."""
        dim = num_values(shape)
        return self.values(self.code.read(parts[1:], dim), parts[0], dim)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Scales are not negative, codes are whole, and of levels that exist."""
        require(bool((parts[0] >= 0).all()), "have scales of at least 0")
        self.code.check(parts[1:], num_values(shape))

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


def _with_signs(
    heights: Float[Tensor, "buckets size"],
    x: Float[Tensor, "buckets size"],
    room: Float[Tensor, "buckets size"],
) -> Float[Tensor, "buckets size"]:
    """Heights, which are not negative, with the signs of other values: a fast `copysign_`."""
    kind = torch.int32 if heights.dtype == torch.float32 else torch.int64
    sign = torch.iinfo(kind).min  # the highest bit
    signs = torch.bitwise_and(x.view(kind), sign, out=room.view(kind))
    heights.view(kind).bitwise_or_(signs)
    return heights
