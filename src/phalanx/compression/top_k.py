"""Top-k sparsification: the largest values and their positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from phalanx.bits import indices_length, pack_indices, unpack_indices
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part, fixed, num_values
from phalanx.compression.selection import largest, num_kept, require_ratio
from phalanx.floats import within


@dataclass(frozen=True)
class TopK(Compressor):
    """Keeps the values of largest magnitude, at least one; of equal ones those that come first.

    Biased: train with `ErrorFeedback` around it. Its error is at most `1 - k / dim` of the squared
    norm, for every tensor.
    Wire: the positions, about `2 + log2(1 / ratio)` bits each, and the values as they are or in two
    bytes each.
    Cost: one pass to find candidates, and a sort of these.
    Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018.

    >>> import torch
    >>> compressor = TopK(ratio=0.5)
    >>> compressor.decode(compressor.encode(torch.tensor([1.0, -4.0, 0.5, 2.0])))
    tensor([ 0., -4.,  0.,  2.])
    """

    ratio: float = 0.01
    """Share of the values that is kept."""
    values: Literal["float16", "bfloat16"] | None = None
    """Halves that values are sent in; None sends them as they are. float16 has three more bits of
    precision, bfloat16 the range of float32. Error feedback remembers what they round off."""

    def __post_init__(self) -> None:
        require_ratio(self.ratio)
        if self.values not in (None, "float16", "bfloat16"):
            raise ValueError(f"values must be float16, bfloat16 or None, got {self.values}")

    def contraction(self, dim: int) -> float | None:
        """`k / dim`, for every tensor; none in halves, whose range may not reach its values."""
        return num_kept(self.ratio, dim) / dim if self.values is None else None

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Positions, values."""
        dim = num_values(shape)
        count = num_kept(self.ratio, dim)
        sent = fixed(self._sent(dtype), count)
        return fixed(torch.uint8, indices_length(dim, count)), sent

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Positions in increasing order, and the values there."""
        flat = x.view(-1)
        indices = largest(flat, num_kept(self.ratio, flat.numel()))
        return pack_indices(indices, flat.numel()), within(flat[indices], self._sent(x.dtype))

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The values in their places, zeros elsewhere."""
        packed, values = parts
        dim = num_values(shape)
        indices = unpack_indices(packed, dim, values.numel())
        found = torch.zeros(dim, dtype=values.dtype, device=values.device)
        return found.index_copy_(0, indices, values)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """The positions are increasing and inside the tensor."""
        unpack_indices(parts[0], num_values(shape), parts[1].numel())

    def _sent(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of values on the wire: that of the tensor, unless halves are wanted."""
        if self.values is None:
            return dtype
        return torch.float16 if self.values == "float16" else torch.bfloat16
