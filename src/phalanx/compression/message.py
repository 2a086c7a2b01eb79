"""Messages of compressors: a few flat tensors whose layout both sides know."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.communication.wire import (
    from_buffer,
    from_bytes,
    integers_from_bytes,
    integers_to_bytes,
    to_bytes,
)
from phalanx.errors import WireError

_MOST = 2**32  # lengths are four bytes


class Part(NamedTuple):
    """What both sides know of one tensor of a message before it is sent.

    Attributes:
        dtype: of its values.
        fewest: values that it has at least.
        most: values that it has at most; if that is `fewest`, its length is not sent.
    """

    dtype: torch.dtype
    fewest: int
    most: int

    @property
    def varies(self) -> bool:
        """Whether the length depends on the values, and has to be sent."""
        return self.fewest != self.most

    @property
    def most_bytes(self) -> int:
        """Bytes that it takes at most, those of its length among them."""
        return 4 * self.varies + self.dtype.itemsize * self.most


def fixed(dtype: torch.dtype, length: int) -> Part:
    """A part whose length follows from the tensor's shape."""
    return Part(dtype, length, length)


class Message(NamedTuple):
    """A compressed tensor.

    On the wire stand the lengths of the parts that vary, four bytes each, then the parts' values,
    all little-endian. Shape and dtype are not sent: the receiver knows the tensor that it is about.

    Attributes:
        shape: of the tensor that was compressed.
        dtype: of it.
        layout: what is known of the parts.
        parts: one-dimensional contiguous tensors.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: tuple[Part, ...]
    parts: tuple[Tensor, ...]

    @property
    def most_bytes(self) -> int:
        """Bytes of any message about such a tensor, at most."""
        return sum(part.most_bytes for part in self.layout)

    @property
    def num_bytes(self) -> int:
        """Bytes that travel: exactly the length of `to_bytes()`."""
        lengths = sum(4 for part in self.layout if part.varies)
        return lengths + sum(part.numel() * part.element_size() for part in self.parts)

    def to_tensor(self) -> Tensor:
        """The bytes that travel as one uint8 tensor, on the device of the parts."""
        lengths = [
            part.numel()
            for part, known in zip(self.parts, self.layout, strict=True)
            if known.varies
        ]
        if any(length >= _MOST for length in lengths):
            raise ValueError(f"a part must have below 2**32 values, got {max(lengths)}")
        header = [integers_to_bytes(lengths, "<u4").to(self.parts[0].device)] if lengths else []
        return to_bytes([*header, *self.parts])

    def to_bytes(self) -> bytes:
        """The bytes that travel."""
        return bytes(self.to_tensor().cpu().numpy().tobytes())


def parse(
    data: bytes | Tensor, shape: tuple[int, ...], dtype: torch.dtype, layout: tuple[Part, ...]
) -> Message:
    """Cuts bytes into the parts of a message; what the parts hold is not looked at.

    Raises:
        WireError: if there are too few bytes or too many, or a length is out of its bounds. Nothing
            is allocated before that is known.
    """
    raw = from_buffer(data) if isinstance(data, bytes) else data
    start = 4 * sum(part.varies for part in layout)
    if raw.numel() < start:
        raise WireError(f"message must have at least {start} bytes, got {raw.numel()}")
    stated = integers_from_bytes(raw[:start], "<u4")
    lengths = [stated.pop(0) if part.varies else part.fewest for part in layout]
    for part, length in zip(layout, lengths, strict=True):
        if not part.fewest <= length <= part.most:
            raise WireError(f"a part must have {part.fewest} to {part.most} values, got {length}")
    values = [(part.dtype, length) for part, length in zip(layout, lengths, strict=True)]
    return Message(shape, dtype, layout, from_bytes(raw[start:], values))


def num_values(shape: tuple[int, ...]) -> int:
    """How many values a tensor of this shape has."""
    return math.prod(shape)
