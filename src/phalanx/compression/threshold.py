"""Threshold sparsification: all values that are large enough."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.bits import pack_indices, packed_length, unpack_indices
from phalanx.checks import require_share
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part, num_values
from phalanx.compression.selection import num_kept, require_ratio

_ADJUSTMENTS = 10  # of a guessed threshold, at most
_LOWER, _HIGHER = 0.7, 1.3  # by which it is adjusted
_FEW, _MANY = 0.75, 4 / 3  # of the values wanted: then it is


@dataclass(frozen=True)
class _LargeValues(Compressor):
    """Keeps values that a rule chooses by their magnitudes; how many depends on the values."""

    @property
    def fixed_size(self) -> bool:
        """False: how many values are kept depends on them."""
        return False

    @abstractmethod
    def chosen(self, flat: Float[Tensor, " dim"]) -> Int64[Tensor, " kept"]:
        """Positions of the values that are kept, increasing."""

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Positions, values."""
        dim = num_values(shape)
        return Part(torch.uint8, 0, packed_length(dim, 1)), Part(dtype, 0, dim)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Positions in increasing order, and the values there."""
        flat = x.view(-1)
        indices = self.chosen(flat)
        return pack_indices(indices, flat.numel()), flat[indices]

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The values in their places, zeros elsewhere."""
        packed, values = parts
        dim = num_values(shape)
        indices = unpack_indices(packed, dim, values.numel())
        return torch.zeros(dim, dtype=dtype, device=values.device).index_copy_(0, indices, values)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """The positions are increasing and inside the tensor."""
        unpack_indices(parts[0], num_values(shape), parts[1].numel())


@dataclass(frozen=True)
class Threshold(_LargeValues):
    """Keeps the values whose magnitude is at least a threshold that is given; maybe none.

    Biased: train with `ErrorFeedback` around it, whose memory then has no value above the
    threshold. What it sends shrinks as training goes on, and all tensors share one scale.
    Wire: lengths, positions, about `2 + log2(dim / kept)` bits each, and the values as they are.
    Cost: one pass.
    Source: Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing",
    Interspeech 2015; Sahu et al., "Rethinking Gradient Sparsification as Total Error Minimization",
    NeurIPS 2021.

    >>> import torch
    >>> compressor = Threshold(2.0)
    >>> compressor.decode(compressor.encode(torch.tensor([1.0, -4.0, 0.5, 2.0])))
    tensor([ 0., -4.,  0.,  2.])
    """

    threshold: float = 0.01
    """The least magnitude that is kept."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(f"threshold must be at least 0 and finite, got {self.threshold}")

    def chosen(self, flat: Float[Tensor, " dim"]) -> Int64[Tensor, " kept"]:
        """Those that reach the threshold."""
        return (flat.abs() >= self.threshold).nonzero().flatten()


@dataclass(frozen=True)
class SampledTopK(_LargeValues):
    """Keeps about the largest values: those above a threshold that a sample suggests.

    The threshold is lowered or raised by 30 %, or less once it went too far, ten times at most,
    while it keeps less than three quarters of the values wanted, or more than four thirds. `TopK`
    is exact, and about as fast.
    Biased: train with `ErrorFeedback` around it.
    Wire: lengths, positions, about `2 + log2(1 / ratio)` bits each, and the values as they are.
    Cost: a sort of the sample, and a pass for each adjustment.
    Source: Lin, Han, Mao, Wang, Dally, "Deep Gradient Compression: Reducing the Communication
    Bandwidth for Distributed Training", ICLR 2018, section 3.

    >>> import torch
    >>> x = torch.arange(1000.0)
    >>> int(SampledTopK(ratio=0.1).decode(SampledTopK(ratio=0.1).encode(x)).count_nonzero())
    100
    """

    ratio: float = 0.01
    """Share of the values that is wanted."""
    sample: float = 0.01
    """Share of the values that the threshold is guessed from; at least 100 of them."""

    def __post_init__(self) -> None:
        require_ratio(self.ratio)
        require_share(sample=self.sample)

    def chosen(self, flat: Float[Tensor, " dim"]) -> Int64[Tensor, " kept"]:
        """Those that reach the threshold; equally spaced values are the sample."""
        magnitudes = flat.abs()
        wanted = num_kept(self.ratio, len(flat))
        looked_at = min(len(flat), max(100, round(self.sample * len(flat))))
        seen = magnitudes[:: len(flat) // looked_at]
        rank = num_kept(self.ratio, len(seen))
        threshold = float(torch.topk(seen, rank, sorted=False).values.min())
        low, high = 0.0, math.inf
        for _ in range(_ADJUSTMENTS):
            kept = int((magnitudes >= threshold).sum())
            if _FEW * wanted <= kept <= _MANY * wanted:
                break
            if kept < wanted:
                high, threshold = threshold, threshold * _LOWER
            else:
                low, threshold = threshold, threshold * _HIGHER
            if not low < threshold < high:  # it went too far: between the two
                threshold = math.sqrt(low * high)
        # Zeros say nothing, and of equal values a higher threshold may have left none.
        least = min(threshold, float(magnitudes.max()))
        return ((magnitudes >= least) & (magnitudes > 0)).nonzero().flatten()
