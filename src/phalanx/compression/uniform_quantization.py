"""Uniform quantisation to the nearest of a few levels."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_between
from phalanx.compression.grid import norms
from phalanx.compression.quantization import GridQuantizer


@dataclass(frozen=True)
class UniformQuantization(GridQuantizer):
    """Rounds every value to the nearest of evenly spaced levels up to the bucket's largest one.

    Biased, but the same for the same tensor; train with `ErrorFeedback` around it when bits are
    few. `QSGD(norm="max")` is its unbiased counterpart.
    Wire: a scale for each bucket and `bits` bits a value.
    Cost: a few passes.
    Source: Gersho, Gray, "Vector Quantization and Signal Compression", 1992, chapter 5.

    >>> import torch
    >>> compressor = UniformQuantization(bits=2)
    >>> compressor.decode(compressor.encode(torch.tensor([1.0, 0.6, 0.4, -1.0])))
    tensor([ 1.,  1.,  0., -1.])
    """

    bits: int = 8
    """Bits a value takes, its sign among them: 2 to 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between(2, 8, bits=self.bits)

    @property
    def num_levels(self) -> int:
        """1, 3, 7, ... 127."""
        return (1 << (self.bits - 1)) - 1

    def contraction(self, dim: int) -> float | None:
        """The largest value of a bucket is exact, and the others are half a level off at most."""
        size = min(dim, self.bucket_size)
        return max(1 / size, 1 - (size - 1) / (2 * self.num_levels) ** 2)

    def scales(self, rows: Float[Tensor, "buckets size"]) -> Float[Tensor, " buckets"]:
        """Largest magnitudes."""
        return norms(rows, "max")

    def round(
        self,
        heights: Float[Tensor, "buckets size"],
        draws: Float[Tensor, "buckets size"] | None,
    ) -> None:
        """To the nearest level; halves go to the even one."""
        heights.round_()
