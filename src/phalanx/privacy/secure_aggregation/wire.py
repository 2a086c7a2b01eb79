"""Messages as bytes: what they are, and their fields in order. Nothing is unpickled.

How long a message must be follows from its kind and from what its reader knows, never from what
its sender claims; so nobody makes a reader allocate more than it expects.
"""

import math
import sys
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from phalanx.privacy.secure_aggregation.entropy import SEED_BYTES
from phalanx.privacy.secure_aggregation.messages import Message
from phalanx.privacy.secure_aggregation.range_check import NUM_SUMS
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.weights import WEIGHT_BITS

HEADER_BYTES = 8
"""Every message starts with this many bytes that tell its kind."""

_MAGIC = b"PHXSEC1"
_KINDS: tuple[type[Any], ...] = get_args(Message)
_WORD_BYTES = 8
_AXES = {
    "values": ("dim",),
    "rows": ("present", "dim"),
    "products": ("workers", "workers"),
    "sums": ("workers", "sums"),
    "weighted": ("dim",),
    "pairs": ("pairs",),
    "differences": ("others", "sums"),
    "offsets": ("workers",),
}
_IDS = ("workers", "marked")


class MalformedMessageError(ValueError):
    """Bytes that are no message, or not one that fits what was agreed."""


def pack(message: Message, setup: SecureSetup) -> bytes:
    """The message as bytes: whole numbers little-endian, ids as one byte for every worker."""
    parts = [_MAGIC, bytes([_KINDS.index(type(message))])]
    for name in message._fields:
        value = getattr(message, name)
        if name in _AXES:
            parts.append(_swapped(value.contiguous().numpy()).tobytes())
        elif name in _IDS:
            parts.append(bytes(worker in value for worker in range(setup.num_workers)))
        else:
            parts.append(value if name == "seed" else value.to_bytes(_WORD_BYTES, "little"))
    return b"".join(parts)


def kind_of(header: bytes) -> type[Any]:
    """What a message is, from its first bytes.

    Raises:
        MalformedMessageError: if they are not those of a message.
    """
    known = len(header) >= HEADER_BYTES and header.startswith(_MAGIC)
    if not known or header[HEADER_BYTES - 1] >= len(_KINDS):
        raise MalformedMessageError("message must start with the name of the format and its kind")
    return _KINDS[header[HEADER_BYTES - 1]]


def num_bytes(kind: type[Any], setup: SecureSetup, present: int = 0) -> int:
    """How long a message of this kind is, where so many workers are in the round."""
    return HEADER_BYTES + sum(_size(name, setup, present) for name in kind._fields)


def unpack(data: bytes | bytearray, setup: SecureSetup, present: int = 0) -> Message:
    """The message that these bytes are.

    Args:
        data: a whole message.
        setup: what was agreed.
        present: how many workers are in the round, as the reader knows.

    Raises:
        MalformedMessageError: if they are none, of the wrong length, or hold numbers that cannot
            be.
    """
    kind = kind_of(bytes(data[:HEADER_BYTES]))
    if len(data) != (expected := num_bytes(kind, setup, present)):
        raise MalformedMessageError(
            f"{kind.__name__} must be {expected} bytes long, got {len(data)}"
        )
    fields, start = [], HEADER_BYTES
    for name in kind._fields:
        stop = start + _size(name, setup, present)
        fields.append(_read(name, data[start:stop], setup, present))
        start = stop
    message: Message = kind(*fields)
    return message


def _shape(name: str, setup: SecureSetup, present: int) -> tuple[int, ...]:
    sizes = {
        "dim": setup.dim,
        "workers": setup.num_workers,
        "present": present,
        "others": max(present - 1, 0),
        "pairs": present * (present - 1) // 2,
        "sums": NUM_SUMS,
    }
    return tuple(sizes[axis] for axis in _AXES[name])


def _size(name: str, setup: SecureSetup, present: int) -> int:
    if name in _AXES:
        return _WORD_BYTES * math.prod(_shape(name, setup, present))
    return {"seed": SEED_BYTES, "workers": setup.num_workers, "marked": setup.num_workers}.get(
        name, _WORD_BYTES
    )


def _read(
    name: str, data: bytes | bytearray, setup: SecureSetup, present: int
) -> int | bytes | tuple[int, ...] | Tensor:
    if name in _AXES:
        words = _swapped(np.frombuffer(bytearray(data), dtype=np.int64))
        return torch.from_numpy(words).reshape(_shape(name, setup, present))
    if name == "seed":
        return bytes(data)
    if name in _IDS:
        if set(data) - {0, 1}:
            raise MalformedMessageError(f"{name} must be a byte of 0 or 1 for every worker")
        return tuple(worker for worker, here in enumerate(data) if here)
    return _whole(name, int.from_bytes(data, "little"), setup)


def _whole(name: str, value: int, setup: SecureSetup) -> int:
    least, most = {
        "worker": (0, setup.num_workers - 1),
        "shift": (0, WEIGHT_BITS),
        "divisor": (1, setup.num_workers),
    }.get(name, (0, 2**62))
    if not least <= value <= most:
        raise MalformedMessageError(f"{name} must be from {least} to {most}, got {value}")
    return value


def _swapped(words: np.ndarray) -> np.ndarray:
    """Little-endian words on any machine."""
    return words if sys.byteorder == "little" else words.byteswap()
