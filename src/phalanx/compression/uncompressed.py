"""The identity compressor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part, fixed, num_values


@dataclass(frozen=True)
class Uncompressed(Compressor):
    """Sends the values as they are: what compressors are compared with, and where runs begin.

    Wire: the values, added on the way, each divided by the number of workers before.
    Cost: a copy.
    Source: Patarasuk, Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations",
    Journal of Parallel and Distributed Computing 2009.

    >>> import torch
    >>> Uncompressed().encode(torch.ones(3)).num_bytes
    12
    """

    @property
    def unbiased(self) -> bool:
        """True."""
        return True

    @property
    def reducible(self) -> bool:
        """True."""
        return True

    def contraction(self, dim: int) -> float | None:
        """1: nothing is left out."""
        return 1.0

    def variance_bound(self, dim: int) -> float | None:
        """0."""
        return 0.0

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """The values."""
        return (fixed(dtype, num_values(shape)),)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """A copy."""
        return (x.reshape(-1).clone(),)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The values."""
        return parts[0]
