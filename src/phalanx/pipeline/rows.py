"""Wire form of a micro-batch: some rows as they are, the others compressed."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from phalanx.compression import Compressor, Message, SampleQuantization
from phalanx.errors import WireError
from phalanx.pipeline.base import Shape

FULL = SampleQuantization(bits=32)
"""What sends rows as they are."""


class Rows(NamedTuple):
    """A micro-batch in two messages.

    Attributes:
        full: about the rows that travel as they are; None if there is none.
        coarse: about the others; None if there is none.
    """

    full: Message | None
    coarse: Message | None

    def to_tensor(self) -> UInt8[Tensor, " bytes"]:
        """The bytes that travel: one message after the other."""
        return torch.cat([one.to_tensor() for one in self if one is not None])


def pick(
    values: Float[Tensor, "batch ..."], which: Bool[Tensor, " batch"]
) -> Float[Tensor, "rows ..."] | None:
    """The rows that are chosen; None if none is, and no copy if all are."""
    count = int(which.sum())
    if count == len(which):
        return values
    return values[which.to(values.device)] if count else None


def put_together(
    whole: Float[Tensor, "rows ..."] | None,
    others: Float[Tensor, "rest ..."] | None,
    full: Bool[Tensor, " batch"],
) -> Float[Tensor, "batch ..."]:
    """The rows in their places; at least one part is there."""
    if whole is None or others is None:
        found = whole if others is None else others
        assert found is not None
        return found
    found = whole.new_empty(len(full), *whole.shape[1:])
    where = full.to(found.device)
    found[where], found[~where] = whole, others.to(found.dtype)
    return found


def cut(
    data: UInt8[Tensor, " bytes"],
    full: Bool[Tensor, " batch"],
    shape: Shape,
    dtype: torch.dtype,
    compressor: Compressor,
    coarse_dtype: torch.dtype,
) -> Rows:
    """The messages in the bytes of a peer.

    Args:
        data: what came.
        full: which rows travel as they are.
        shape: of one row.
        dtype: of the tensor that crosses.
        compressor: of the other rows.
        coarse_dtype: of what it compressed.

    Raises:
        WireError: if the bytes are not those of such rows.
    """
    many = int(full.sum())
    sizes = [many, len(full) - many]
    lengths = [
        one.num_bytes((count, *shape), kind)
        for one, count, kind in zip((FULL, compressor), sizes, (dtype, coarse_dtype), strict=True)
    ]
    if data.numel() != sum(lengths):
        raise WireError(f"rows must have {sum(lengths)} bytes, got {data.numel()}")
    found = [
        one.from_bytes(piece, (count, *shape), kind) if count else None
        for one, piece, count, kind in zip(
            (FULL, compressor), data.split(lengths), sizes, (dtype, coarse_dtype), strict=True
        )
    ]
    return Rows(*found)
