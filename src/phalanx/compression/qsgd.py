"""QSGD: unbiased stochastic quantisation to a few levels."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_between
from phalanx.compression.grid import Norm, norms
from phalanx.compression.level_codes import (
    DenseLevels,
    FixedLevels,
    Integers,
    LevelCode,
    ShortestLevels,
    SparseLevels,
)
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
    coding: Literal["fixed", "elias-sparse", "elias-dense", "auto"] = "fixed"
    """All levels in equally many bits; or in a code of varying length, which is slow: those that
    are not zero and the gaps between them, short where most are zero; or all of them. "auto" takes
    what is shortest for each tensor, at one byte more."""
    integers: Integers = "omega"
    """Elias's code of gaps and heights: gamma is shorter below 16, omega for large numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between(1, 127, levels=self.levels)
        codings = ("fixed", "elias-sparse", "elias-dense", "auto")
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

    @property
    def code(self) -> LevelCode:
        """As `coding` says."""
        if self.coding == "fixed":
            return FixedLevels(self.levels)
        if self.coding == "auto":
            return ShortestLevels(self.levels, self.integers)
        kind = SparseLevels if self.coding == "elias-sparse" else DenseLevels
        return kind(self.levels, self.integers)
