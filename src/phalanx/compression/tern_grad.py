"""TernGrad: unbiased ternary quantisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from phalanx.bits import check_trits, pack_trits, packed_trits, unpack_trits
from phalanx.checks import require_above
from phalanx.communication.collectives import AllReduce, Averaged, Exchange, ExchangeContext, State
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.draws import uniforms
from phalanx.compression.grid import share
from phalanx.compression.message import Part, fixed, num_values
from phalanx.errors import require
from phalanx.floats import power_of_two, within, working


@dataclass(frozen=True)
class TernGrad(Compressor):
    """Sends the sign of a value with a probability that grows with its magnitude, or zero.

    Unbiased without clipping; the squared error is then `t * |x|_1 - |x|^2` with `t` the largest
    magnitude. With a shared scale the workers agree on the largest of theirs first, and whole
    numbers are added on the way: in one byte up to 127 workers, in four beyond.
    Wire: one scale, and 1.6 bits a value where messages are gathered.
    Cost: a few passes.
    Source: Wen, Xu, Yan, Wu, Wang, Chen, Li, "TernGrad: Ternary Gradients to Reduce Communication
    in Distributed Deep Learning", NeurIPS 2017, section 3.

    >>> import torch
    >>> compressor = TernGrad()
    >>> x = torch.tensor([2.0, 0.0, -2.0])
    >>> compressor.decode(compressor.encode(x, torch.Generator().manual_seed(0)))
    tensor([ 2.,  0., -2.])
    """

    clip: float | None = None
    """Standard deviations beyond which values are cut off first (2.5 in the paper): this biases."""
    share_scale: bool = True
    """Whether workers agree on one scale for each tensor, so that levels can be added."""

    def __post_init__(self) -> None:
        require_above(0, clip=self.clip)

    @property
    def random(self) -> bool:
        """True."""
        return True

    @property
    def unbiased(self) -> bool:
        """Unless values are cut off."""
        return self.clip is None

    def variance_bound(self, dim: int) -> float | None:
        """`(sqrt(dim) - 1) / 2`, as for one large value and equal others; none with clipping."""
        return (math.sqrt(dim) - 1) / 2 if self.unbiased else None

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Scale, digits."""
        return fixed(working(dtype), 1), fixed(torch.uint8, packed_trits(num_values(shape)))

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Digits are 0, 1 and 2 for minus, zero and plus."""
        clipped = self._clipped(x)
        scale = clipped.abs().max().view(1)
        return scale, pack_trits((_ternary(clipped, scale, generator) + 1).to(torch.uint8))

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Digits times the scale."""
        scale, digits = parts
        return (unpack_trits(digits, num_values(shape)).to(scale.dtype) - 1) * scale

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """The scale is not negative, the digits are ternary."""
        require(bool((parts[0] >= 0).all()), "have a scale of at least 0")
        check_trits(parts[1], num_values(shape))

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """With a shared scale: the largest scale first, then the sum of the levels."""
        full = [place for place, x in enumerate(tensors) if x.numel()]
        if not self.share_scale or not full:
            return (yield from super().exchange(tensors, states, context))
        clipped = [self._clipped(tensors[place]) for place in full]
        own = torch.stack([x.abs().max().double() for x in clipped])
        scales = yield AllReduce(own, largest=True)
        assert isinstance(scales, Tensor)
        levels = [
            _ternary(x, scale.to(x.dtype).view(1), context.generator(place, shared=False))
            for place, x, scale in zip(full, clipped, scales, strict=True)
        ]
        container = torch.int8 if context.num_workers <= 127 else torch.int32
        total = yield AllReduce(torch.cat(levels).to(container))
        assert isinstance(total, Tensor)
        mean, sent = [x.clone() for x in tensors], [x.clone() for x in tensors]
        sums = total.split([len(level) for level in levels])
        for place, scale, level, added in zip(full, scales, levels, sums, strict=True):
            like = tensors[place]
            sent[place] = within(level * scale, like.dtype).view(like.shape)
            average = added * (scale / context.num_workers)
            mean[place] = within(average, like.dtype).view(like.shape)
        return Averaged(mean, sent, states)

    def _clipped(self, x: Tensor) -> Float[Tensor, " dim"]:
        """The values, flat, in the dtype of arithmetic, cut off where they are to be."""
        flat = x.detach().reshape(-1).to(working(x.dtype))
        if self.clip is None:
            return flat
        scale = power_of_two(flat)  # squares of what is divided by it do not overflow
        bound = (self.clip * (flat.double() / scale).std(correction=0) * scale.double()).item()
        return flat.clamp(-bound, bound) if math.isfinite(bound) else flat


def _ternary(
    flat: Float[Tensor, " dim"], scale: Tensor, generator: torch.Generator | None
) -> Int8[Tensor, " dim"]:
    """The signs of those values that are kept."""
    kept = uniforms(flat, generator) < share(flat[None], scale)[0]
    return flat.sign().to(torch.int8) * kept
