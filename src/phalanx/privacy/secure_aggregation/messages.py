"""Messages of the secure aggregation protocol, and their wire format.

A share that one server alone holds is uniform noise. The server that a message is for is part of
its name or its docstring; what a server knows after a round is its view.

As bytes a message is its kind and its fields in order; nothing is unpickled. How long it must be
follows from its kind and from what its reader knows, never from what its sender claims; so nobody
makes a reader allocate more than it expects.
"""

import math
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from phalanx.privacy.secure_aggregation.protocol import (
    NUM_SUMS,
    SEED_BYTES,
    WEIGHT_BITS,
    SecureSetup,
)


class SeedShare(NamedTuple):
    """Worker to model server: its share of the worker's message, as the seed of it."""

    round: int
    worker: int
    seed: bytes


class VectorShare(NamedTuple):
    """Worker to worker server: the message less what the seed expands to."""

    round: int
    worker: int
    values: Int64[Tensor, " dim"]


class ModelServerDeal(NamedTuple):
    """Dealer to model server: its shares of all correlated randomness, as the seed of them."""

    round: int
    seed: bytes


class WorkerServerDeal(NamedTuple):
    """Dealer to worker server: a seed, and its shares of what depends on both seeds.

    Attributes:
        products: inner products of the masks.
        sums: the masks' random sums, see `fixed_point.in_range`.
        weighted: the sum of the masks with the random weights that this server's seed stands for.
    """

    round: int
    seed: bytes
    products: Int64[Tensor, "workers workers"]
    sums: Int64[Tensor, "workers sums"]
    weighted: Int64[Tensor, " dim"]


class DealRequest(NamedTuple):
    """Server to dealer: a request for its part of the correlated randomness."""

    round: int


class Receipt(NamedTuple):
    """Server to worker: the receipt of its share."""

    round: int


class Participants(NamedTuple):
    """Server to server: whose shares have arrived, and who sent something malformed.

    The answer of the worker server names those who are in the round.
    """

    round: int
    workers: tuple[int, ...]
    marked: tuple[int, ...]


class MaskedShares(NamedTuple):
    """Server to server: its shares of the messages less the masks, worker by worker."""

    round: int
    rows: Int64[Tensor, "present dim"]


class DistanceShares(NamedTuple):
    """Model server to worker server, who opens them: shares of what only that server learns.

    Attributes:
        pairs: squared distances of all pairs of messages.
        differences: random sums of the other messages less those of the first.
    """

    round: int
    pairs: Int64[Tensor, " pairs"]
    differences: Int64[Tensor, "others sums"]


class WeightedShare(NamedTuple):
    """Worker server to model server, who opens it: a share of the weighted sum of the messages.

    Attributes:
        offsets: weights less the random weights of the deal, which hide them.
        values: the share.
        shift: bits that the weights have after the point.
        divisor: what the sum is divided by.
    """

    round: int
    offsets: Int64[Tensor, " workers"]
    values: Int64[Tensor, " dim"]
    shift: int
    divisor: int


class SumRequest(NamedTuple):
    """Model server to worker server: a request for the plain sum, without distances or weights."""

    round: int


class SumShare(NamedTuple):
    """Worker server to model server, who opens it: the sum of its shares of the messages."""

    round: int
    values: Int64[Tensor, " dim"]


class OpenRequest(NamedTuple):
    """Model server to dealer and worker server: a request to open a round, when it starts anew.

    Attributes:
        round: the first that may be opened.
    """

    round: int


class OpenRound(NamedTuple):
    """The answer to that: the first round from there on whose randomness is not spent.

    Attributes:
        round: that of the request.
        next: the one to begin with.
    """

    round: int
    next: int


Message = (
    SeedShare
    | VectorShare
    | ModelServerDeal
    | WorkerServerDeal
    | DealRequest
    | Receipt
    | Participants
    | MaskedShares
    | DistanceShares
    | WeightedShare
    | SumRequest
    | SumShare
    | OpenRequest
    | OpenRound
)

HEADER_BYTES = 8
"""Bytes at the start of every message that tell its kind."""

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
    """Bytes of a message: whole numbers little-endian, ids as one byte for every worker."""
    parts = [_MAGIC, bytes([_KINDS.index(type(message))])]
    for name in message._fields:
        value = getattr(message, name)
        if name in _AXES:
            parts.append(value.contiguous().numpy().astype("<i8", copy=False).tobytes())
        elif name in _IDS:
            parts.append(bytes(worker in value for worker in range(setup.num_workers)))
        else:
            parts.append(value if name == "seed" else value.to_bytes(_WORD_BYTES, "little"))
    return b"".join(parts)


def kind_of(header: bytes) -> type[Any]:
    """The type of a message, from its first bytes.

    Raises:
        MalformedMessageError: if they are not those of a message.
    """
    known = len(header) >= HEADER_BYTES and header.startswith(_MAGIC)
    if not known or header[HEADER_BYTES - 1] >= len(_KINDS):
        raise MalformedMessageError("message must start with the name of the format and its kind")
    return _KINDS[header[HEADER_BYTES - 1]]


def num_bytes(kind: type[Any], setup: SecureSetup, present: int = 0) -> int:
    """Length of a message of this kind, where so many workers are in the round."""
    return HEADER_BYTES + sum(_size(name, setup, present) for name in kind._fields)


def unpack(data: bytes | bytearray, setup: SecureSetup, present: int = 0) -> Message:
    """The message that these bytes stand for.

    Args:
        data: a whole message.
        setup: the public parameters.
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


class CommunicationCost(NamedTuple):
    """Bytes of one round of secure aggregation in which everybody takes part.

    Attributes:
        upload_bytes: from one worker to both servers.
        between_servers_bytes: in both directions together.
        from_dealer_bytes: to both servers; none of it depends on messages, so it may go in advance.
    """

    upload_bytes: int
    between_servers_bytes: int
    from_dealer_bytes: int


def communication_cost(setup: SecureSetup) -> CommunicationCost:
    """The bytes of a round, framing of the network not counted.

    >>> from phalanx.privacy import SecureSetup, communication_cost
    >>> tuple(communication_cost(SecureSetup(num_workers=10, dim=100_000)))
    (800080, 16805200, 806016)
    """
    present = setup.num_workers
    twice = 2 * (num_bytes(Participants, setup) + num_bytes(MaskedShares, setup, present))
    return CommunicationCost(
        num_bytes(SeedShare, setup) + num_bytes(VectorShare, setup),
        twice + num_bytes(DistanceShares, setup, present) + num_bytes(WeightedShare, setup),
        num_bytes(ModelServerDeal, setup) + num_bytes(WorkerServerDeal, setup),
    )


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
        words = np.frombuffer(bytearray(data), dtype="<i8").astype(np.int64, copy=False)
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
