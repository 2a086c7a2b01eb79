"""Public parameters of a secure sum, and its messages as named tensors."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.checks import require_at_least, require_between
from phalanx.errors import require
from phalanx.privacy.secure_sum.keys import KEY_BYTES, SEAL_BYTES, digest
from phalanx.privacy.secure_sum.shamir import SHARE_BYTES

Message = Mapping[str, Tensor]
"""What one party sends to another: tensors by name, of no trusted content."""

TAG_BYTES = 16
"""By which an advertisement says for which sum and of which client it is."""

ADVERT_BYTES = TAG_BYTES + 2 * KEY_BYTES
"""Length of an advertisement: the tag, and two public keys."""

PAIR_BYTES = 2 * SHARE_BYTES
"""Length of a pair of shares: of the self-mask's key, and of the secret mask key."""

DIGEST_BYTES = 32
"""Length of a digest."""

DEAL_BYTES = PAIR_BYTES + SEAL_BYTES + 2 * DIGEST_BYTES
"""Length of what a client deals to one other: a sealed pair, and a digest of each share."""


def default_threshold(num_clients: int) -> int:
    """The threshold of the paper against active servers: more than two thirds."""
    return 2 * num_clients // 3 + 1


@dataclass(frozen=True)
class SumSetup:
    """Public parameters of one secure sum, which all parties know from elsewhere.

    The threshold is above half of the clients: then a server that tells clients different stories
    about who dropped out still cannot open both secrets of one client.
    """

    num_clients: int = 10
    """Clients that may take part (n), named by their places from 0."""

    width: int = 1
    """Words of a vector."""

    threshold: int | None = None
    """Clients that must last to the end (t); more than two thirds by default."""

    bits: int = 32
    """Bits of a word, 32 or 64: sums are modulo 2^bits."""

    label: str = ""
    """Of the sum, different for every sum between these clients: its round, say."""

    attempt: int = 0
    """Which attempt at the sum it is: see `run_secure_sum`."""

    def __post_init__(self) -> None:
        require_at_least(2, num_clients=self.num_clients)
        require_at_least(0, width=self.width)
        if self.bits not in (32, 64):
            raise ValueError(f"bits must be 32 or 64, got {self.bits}")
        require_threshold(self.threshold, self.num_clients)

    @property
    def needed(self) -> int:
        """The threshold (t), default or not."""
        return default_threshold(self.num_clients) if self.threshold is None else self.threshold

    @property
    def dtype(self) -> torch.dtype:
        """Of words."""
        return torch.int32 if self.bits == 32 else torch.int64

    def purpose(self, name: str, *clients: int) -> bytes:
        """What a key or digest is for: the sum, and the clients, in order."""
        told = (self.label, str(self.attempt), name, *map(str, clients))
        return digest(*(one.encode() for one in told))

    def tag(self, client: int) -> bytes:
        """By which the client's advertisement is known."""
        return self.purpose("advertisement", client)[:TAG_BYTES]


def require_threshold(threshold: int | None, num_clients: int) -> None:
    """Raises ValueError if a threshold is not above half of the clients, or above all of them."""
    if threshold is None:
        return
    try:
        require_between(num_clients // 2 + 1, num_clients, threshold=threshold)
    except ValueError as error:
        raise ValueError(
            f"{error}: more than half of the {num_clients} clients of a round, and no more than all"
        ) from error


def taken(message: object, **kinds: tuple[torch.dtype, tuple[int | None, ...]]) -> list[Tensor]:
    """The tensors of a message that a peer sent, in the order asked for.

    Args:
        message: of no trusted content.
        kinds: dtype and shape of each, by name; an axis of any size is None.

    Raises:
        WireError: if it is another message.
    """
    require(isinstance(message, Mapping) and set(message) == set(kinds), f"hold {sorted(kinds)}")
    assert isinstance(message, Mapping)
    found = []
    for name, (dtype, shape) in kinds.items():
        one = message[name]
        plain = type(one) is Tensor and one.layout == torch.strided and not one.is_meta
        require(plain, "hold tensors")
        require(one.dtype == dtype, f"hold {name} of {dtype}")
        fits = one.ndim == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, one.shape, strict=True)
        )
        require(fits, f"hold {name} of shape {shape}, got {tuple(one.shape)}")
        found.append(one.detach().cpu())
    return found


def places(message: Tensor, num_clients: int) -> list[int]:
    """Places of clients, in order and each once.

    Raises:
        WireError: if they are not.
    """
    found: list[int] = message.tolist()
    rising = all(one < other for one, other in itertools.pairwise(found))
    require(rising and all(0 <= one < num_clients for one in found), "name clients in order")
    return found
