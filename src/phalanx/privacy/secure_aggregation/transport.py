"""Connections to the servers of secure aggregation, over gRPC.

One method serves all: the caller streams a message, and a message comes back. A key goes along as
metadata, so it is as secret as the connection: encrypt it, or stay on one machine.
"""

import importlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from phalanx.errors import (
    DecodeError,
    ReusedRandomnessError,
    ServerLostError,
    TooManyByzantineError,
)
from phalanx.privacy.secure_aggregation import messages
from phalanx.privacy.secure_aggregation.messages import MalformedMessageError, Message
from phalanx.privacy.secure_aggregation.protocol import SecureSetup

CHUNK_BYTES = 1 << 20
"""Bytes of a message that are sent at a time."""

SERVICE, METHOD, KEY = "phalanx.SecureAggregation", "Exchange", "phalanx-key"
"""Names of the gRPC service, of its method, and of the caller's key in the metadata."""

OPTIONS = [
    ("grpc.max_receive_message_length", CHUNK_BYTES),
    ("grpc.max_send_message_length", CHUNK_BYTES),
    ("grpc.so_reuseport", 0),
]
"""Options of both ends of a gRPC connection."""

_LOCAL = ("localhost", "127.0.0.1", "[::1]", "unix")

Answer = TypeVar("Answer", bound=Message)

Keys = Mapping[str, str]
"""A secret for everybody who may speak to a server, by name."""

MIN_KEY_LENGTH = 22
"""Characters of 128 random bits in base64."""


class UnexpectedMessageError(Exception):
    """A message that a server cannot take now: too early, too late, or out of order."""


class RoundOverError(UnexpectedMessageError):
    """A share that comes too late."""


STATUS_CODES: dict[type[Exception], str] = {
    MalformedMessageError: "INVALID_ARGUMENT",
    RoundOverError: "OUT_OF_RANGE",
    UnexpectedMessageError: "FAILED_PRECONDITION",
    ReusedRandomnessError: "ALREADY_EXISTS",
    TooManyByzantineError: "ABORTED",
    ServerLostError: "UNAVAILABLE",
}
"""The status by which a server answers with an error; the first that fits."""


class Peer(NamedTuple):
    """Address of a server, and how a caller makes itself known to it.

    Attributes:
        address: `host:port`.
        key: the secret that it knows the caller by.
        credentials: of `grpc.ssl_channel_credentials`; None: not encrypted, which is refused
            unless the server is on this machine.
        plain: do not encrypt, wherever the server is.
    """

    address: str
    key: str
    credentials: Any = None
    plain: bool = False


class Connection:
    """A caller's connection to one server.

    Args:
        setup: the public parameters.
        peer: the server.

    Raises:
        ValueError: if it is on another machine and nothing encrypts the connection, or the key is
            none.
    """

    def __init__(self, setup: SecureSetup, peer: Peer) -> None:
        grpc = import_grpc()
        self._setup, self._key = setup, peer.key
        self._grpc, self.address = grpc, peer.address
        if peer.credentials is None:
            require_local(peer.address, peer.plain)
            self._channel = grpc.insecure_channel(peer.address, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(peer.address, peer.credentials, options=OPTIONS)
        require_key(f"at {peer.address}", peer.key)
        self._exchange = self._channel.stream_stream(f"/{SERVICE}/{METHOD}")

    def ask(
        self, message: Message, kind: type[Answer], timeout_s: float, present: int = 0
    ) -> Answer:
        """The answer to a message, of this kind and of the same round.

        Args:
            message: the message.
            kind: what must come back.
            timeout_s: how long to wait for it.
            present: how many workers are in the round.

        Raises:
            ServerLostError: if the server is gone, silent for too long, or answers something else.
            UnexpectedMessageError: if it cannot take this message now.
            DecodeError: if it found too many unusable messages.
            ReusedRandomnessError: if the randomness of this round is spent.
            MalformedMessageError: if it finds no sense in the message.
        """
        chunks, metadata = in_chunks(messages.pack(message, self._setup)), ((KEY, self._key),)
        call = self._exchange(chunks, timeout=timeout_s, metadata=metadata)
        try:
            answer = gather(call, self._setup, present)
        except self._grpc.RpcError as error:
            raise self._translated(error.code().name, str(error.details())) from error
        except MalformedMessageError as error:
            raise ServerLostError(f"{self.address} answers nonsense: {error}") from error
        if not isinstance(answer, kind) or answer.round != message.round:
            raise ServerLostError(f"{self.address} answers something else than {kind.__name__}")
        return answer

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def _translated(self, status: str, details: str) -> Exception:
        kind = next((one for one, code in STATUS_CODES.items() if code == status), ServerLostError)
        if kind is TooManyByzantineError:
            return DecodeError(details, workers=[], bound=0)
        if kind is ServerLostError:
            return ServerLostError(f"{self.address} does not answer: {status}, {details}")
        return kind(details)


def in_chunks(data: bytes) -> Iterator[bytes]:
    """The bytes, a little at a time."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def gather(
    chunks: Iterable[bytes],
    setup: SecureSetup,
    present: int,
    admits: Callable[[type[Any]], bool] = lambda kind: True,
) -> Message:
    """The message that comes in chunks; allocates no more than its kind needs.

    Raises:
        MalformedMessageError: if it is none, not admitted, or longer or shorter than it must be.
    """
    source = iter(chunks)
    first = next(source, b"")
    kind = messages.kind_of(first[: messages.HEADER_BYTES])
    if not admits(kind):
        raise MalformedMessageError(f"the caller may not send {kind.__name__}")
    expected = messages.num_bytes(kind, setup, present)
    data = bytearray(first)
    for chunk in source:
        data += chunk
        if len(data) > expected:
            break
    return messages.unpack(data, setup, present)


def fresh_keys(setup: SecureSetup) -> dict[str, dict[str, str]]:
    """Random keys for each server: who may speak to it and by which secret."""
    return {
        server: {name: secrets.token_urlsafe(32) for name in names}
        for server, names in callers(setup).items()
    }


def callers(setup: SecureSetup) -> dict[str, list[str]]:
    """The names of those who speak to each server."""
    workers = [worker_name(worker) for worker in range(setup.num_workers)]
    return {
        "model server": workers,
        "worker server": [*workers, "model server"],
        "dealer": ["model server", "worker server"],
    }


def require_keys(keys: Keys, names: Sequence[str], own: Mapping[str, str]) -> None:
    """Refuses a table of keys by which a server would take somebody for a caller who is not.

    Args:
        keys: what the server accepts.
        names: who speaks to it.
        own: what it makes itself known by to others, who see that, by their names.

    Raises:
        ValueError: if a caller is missing or unknown, a key is too short or cannot be sent, or two
            are the same; the message has names, and no key.
    """
    if missing := [name for name in names if name not in keys]:
        raise ValueError(f"keys must hold one for every caller, got none for {', '.join(missing)}")
    if unknown := [name for name in keys if name not in names]:
        raise ValueError(
            f"keys must be those of {names[0]} to {names[-1]}, got one for {', '.join(unknown)}"
        )
    holders: dict[str, str] = {}
    for name, key in [*keys.items(), *((f"this server at the {one}", own[one]) for one in own)]:
        require_key(f"of {name}", key)
        if key in holders:
            raise ValueError(f"keys must differ, got one for both {holders[key]} and {name}")
        holders[key] = name


def require_key(whose: str, key: str) -> None:
    """Refuses a key that is easily guessed, or changes on the way as gRPC metadata."""
    if not re.fullmatch(f"[!-~]{{{MIN_KEY_LENGTH},}}", key):
        raise ValueError(
            f"the key {whose} must have at least {MIN_KEY_LENGTH} characters, ASCII and no spaces, "
            f"got {len(key)} characters"
        )


def worker_name(worker: int) -> str:
    """The name of a worker in the table of keys."""
    return f"worker {worker}"


def server_credentials(certificate: Path | None, private_key: Path | None) -> Any:
    """Credentials that a server shows, from PEM files; None without files: not encrypted.

    Raises:
        ValueError: if only one of the two files is given.
    """
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise ValueError("certificate and private_key must be given together")
    pair = (private_key.read_bytes(), certificate.read_bytes())
    return import_grpc().ssl_server_credentials([pair])


def channel_credentials(authority: Path | None) -> Any:
    """Credentials by which a caller checks a server's certificate: its authority, or None."""
    if authority is None:
        return None
    return import_grpc().ssl_channel_credentials(authority.read_bytes())


def require_local(address: str, plain: bool) -> None:
    """Raises ValueError if others could listen to what goes to this address."""
    host = address.rpartition(":")[0] if not address.startswith("unix:") else "unix"
    if not plain and host not in _LOCAL:
        raise ValueError(
            f"address must be on this machine unless credentials are given, got {address}; or say "
            "plain=True"
        )


def import_grpc() -> ModuleType:
    """The gRPC library, imported where it is used: most of the package does without.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module("grpc")
    except ImportError as error:
        raise ImportError(
            "secure aggregation over a network needs gRPC: pip install 'phalanx[secure]'"
        ) from error
