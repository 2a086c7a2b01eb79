"""Random rounding to a few levels, right on average."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.compression.base import Shape, working
from phalanx.compression.grid import Norm, norms, num_buckets
from phalanx.compression.level_codes import DenseLevels, Integers, LevelCode, SparseLevels
from phalanx.compression.message import Part, fixed, num_values, require
from phalanx.compression.quantization import GridQuantizer


@dataclass(frozen=True)
class QSGD(GridQuantizer):
    """Rounds every value, at random, to one of the two levels of its bucket next to it.

    Unbiased: it goes up with the probability that makes up for going down. The squared error is at
    most `min(size / levels^2, sqrt(size) / levels)` of the squared norm, with buckets of `size`.
    Wire: a scale for each bucket, and all levels in as few bits as hold any of them; or levels in
    one of Elias's codes, each by itself or by the gaps between those that are not zero.
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
    coding: Literal["fixed", "elias-sparse", "elias-dense"] = "fixed"
    """All levels in equally many bits; or in a code of varying length, which is slow: those that
    are not zero and the gaps between them, short where most are zero; or all of them."""
    integers: Integers = "omega"
    """Elias's code of gaps and heights: gamma is shorter below 16, omega for large numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.levels <= 127:
            raise ValueError(f"levels must be from 1 to 127, got {self.levels}")
        codings = ("fixed", "elias-sparse", "elias-dense")
        if self.coding not in codings:
            raise ValueError(f"coding must be one of {', '.join(codings)}, got {self.coding}")
        if self.integers not in ("omega", "gamma"):
            raise ValueError(f"integers must be omega or gamma, got {self.integers}")

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

    def scales(self, rows: Float[Tensor, "buckets size"]) -> Float[Tensor, " buckets"]:
        """Norms."""
        return norms(rows, self.norm)

    def round(
        self,
        heights: Float[Tensor, "buckets size"],
        draws: Float[Tensor, "buckets size"] | None,
    ) -> None:
        """Up where the draw is below the fraction above the lower level."""
        assert draws is not None
        heights.sub_(draws).ceil_()

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Scales and levels."""
        if self._code is None:
            return super().layout(shape, dtype)
        dim = num_values(shape)
        scales = fixed(working(dtype), num_buckets(dim, self.bucket_size))
        return scales, *self._code.layout(dim)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """As the coding says."""
        if self._code is None:
            return super().pack(x, generator)
        scales, rows = self.quantized(x.view(-1), generator)
        return scales, *self._code.write(rows.view(-1)[: x.numel()])

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Every level times its bucket's scale."""
        if self._code is None:
            return super().unpack(parts, shape, dtype)
        dim = num_values(shape)
        return self.values(self._code.read(parts[1:], dim), parts[0], dim)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Also that codes are whole, inside the tensor, and of levels that exist."""
        if self._code is None:
            super().check(parts, shape, dtype)
            return
        require(bool((parts[0] >= 0).all()), "have scales of at least 0")
        self._code.check(parts[1:], num_values(shape), self.levels)

    @property
    def _code(self) -> LevelCode | None:
        """None for levels of fixed width."""
        if self.coding == "fixed":
            return None
        kind = SparseLevels if self.coding == "elias-sparse" else DenseLevels
        return kind(self.integers)
