"""What quantisers on a grid share: scales, packed levels, and how they are read."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from phalanx.compression.base import Compressor, Shape, working
from phalanx.compression.bits import check_packed, pack, packed_length, unpack
from phalanx.compression.grid import buckets, num_buckets, values
from phalanx.compression.message import Part, fixed, num_values, require

_BLOCK = 1 << 16  # values at a time


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
    def quantize(
        self, rows: Float[Tensor, "buckets size"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, " buckets"], Int16[Tensor, "buckets size"]]:
        """Scales, and levels from `-num_levels` to `num_levels`."""

    def quantized(
        self, flat: Float[Tensor, " dim"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, " buckets"], Int16[Tensor, "buckets size"]]:
        """All buckets, as many at a time as stay in the cache."""
        rows = buckets(flat, self.bucket_size)
        depth = max(1, _BLOCK // rows.shape[1]) if flat.device.type == "cpu" else len(rows)
        found = [self.quantize(block, generator) for block in rows.split(depth)]
        return torch.cat([scales for scales, _ in found]), torch.cat([codes for _, codes in found])

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
        shifted = (codes.view(-1)[: x.numel()] + self.num_levels).to(torch.uint8)
        return scales, pack(shifted, self.width)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Every level times its bucket's scale."""
        scales, packed = parts
        dim = num_values(shape)
        shifted = unpack(packed, self.width, dim).to(torch.int16) - self.num_levels
        return self.values(shifted, scales, dim)

    def values(self, codes: Int16[Tensor, " dim"], scales: Tensor, dim: int) -> Tensor:
        """What levels stand for, given the scales of their buckets."""
        size = min(self.bucket_size, dim)
        rows = torch.nn.functional.pad(codes, (0, -dim % size)).view(-1, size)
        return values(rows, scales, self.num_levels).view(-1)[:dim]

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Scales are not negative, and there are no levels beyond the last."""
        scales, packed = parts
        dim = num_values(shape)
        require(bool((scales >= 0).all()), "have scales of at least 0")
        check_packed(packed, self.width, dim)
        top = int(unpack(packed, self.width, dim).max())
        require(top <= 2 * self.num_levels, f"have levels of at most {2 * self.num_levels}")
