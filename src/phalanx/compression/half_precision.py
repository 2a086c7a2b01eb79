"""Half-precision compression: float16 or bfloat16 on the wire."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part, fixed, num_values
from phalanx.floats import within


@dataclass(frozen=True)
class HalfPrecision(Compressor):
    """Rounds to sixteen bits. Values beyond the range of the format are held at its border.

    Workers' halves are added on the way, each divided by their number before.
    Wire: two bytes a value.
    Cost: one pass.
    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018.

    >>> import torch
    >>> compressor = HalfPrecision("bfloat16")
    >>> compressor.decode(compressor.encode(torch.tensor([1.0, 3.14159])))
    tensor([1.0000, 3.1406])
    """

    format: Literal["float16", "bfloat16"] = "float16"
    """float16 has three more bits of precision, bfloat16 the range of float32."""

    def __post_init__(self) -> None:
        if self.format not in ("float16", "bfloat16"):
            raise ValueError(f"format must be float16 or bfloat16, got {self.format}")

    @property
    def half(self) -> torch.dtype:
        """The dtype on the wire."""
        return torch.float16 if self.format == "float16" else torch.bfloat16

    @property
    def reducible(self) -> bool:
        """True."""
        return True

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """The values."""
        return (fixed(self.half, num_values(shape)),)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Rounded to the nearest."""
        return (within(x.view(-1), self.half).clone(),)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The halves."""
        return parts[0]
