"""Scaled-sign compression: signs and the mean magnitude."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.bits import check_packed, pack_signs, packed_length, unpack_signs
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part, fixed, num_values
from phalanx.errors import require
from phalanx.floats import working

_BLOCK = 1 << 15  # magnitudes that are summed in their own precision


@dataclass(frozen=True)
class ScaledSign(Compressor):
    """Sends the sign of every value, and one scale: the mean magnitude.

    Biased: train with `ErrorFeedback` around it (EF-signSGD). Its squared error is
    `1 - |x|_1^2 / (dim |x|^2)` of the squared norm: about 0.36 for Gaussian values.
    Wire: one bit a value, and the scale.
    Cost: two passes.
    Source: Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient
    Compression Schemes", ICML 2019, section 4.

    >>> import torch
    >>> compressor = ScaledSign()
    >>> compressor.decode(compressor.encode(torch.tensor([3.0, -1.0, 2.0])))
    tensor([ 2., -2.,  2.])
    """

    def contraction(self, dim: int) -> float | None:
        """`1 / dim`, which one large value among zeros comes to."""
        return 1 / dim

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Scale, bits."""
        dim = num_values(shape)
        return fixed(working(dtype), 1), fixed(torch.uint8, packed_length(dim, 1))

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """A bit is set where the value is negative; zero counts as positive."""
        return _mean_magnitude(x.view(-1)).view(1), pack_signs(x)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The scale with the signs."""
        scale, bits = parts
        return unpack_signs(bits, num_values(shape), scale)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """The scale is not negative, and bits after the last are zero."""
        require(bool((parts[0] >= 0).all()), "have a scale of at least 0")
        check_packed(parts[1], 1, num_values(shape))


def _mean_magnitude(flat: Float[Tensor, " dim"]) -> Float[Tensor, ""]:
    """The mean magnitude in the dtype of arithmetic; blocks are summed first, then these."""
    wide = working(flat.dtype)
    sums = [block.to(wide).abs().sum() for block in flat.split(_BLOCK)]
    total = torch.stack(sums).sum(dtype=torch.float64)
    if not total.isfinite():  # a sum is too large for its dtype: then smaller numbers are summed
        return (flat.double() / flat.numel()).abs().sum().to(wide)
    return (total / flat.numel()).to(wide)
