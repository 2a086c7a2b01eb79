"""Messages over gRPC: in chunks, from senders that show a key, with a limit on everything.

One method serves all: the caller streams a message, and a message comes back. A key goes along as
metadata, so it is as secret as the connection: encrypt it, or stay on one machine.
"""

import hmac
import importlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from phalanx.errors import (
    DecodeError,
    ReusedRandomnessError,
    ServerLostError,
    TooManyByzantineError,
)
from phalanx.privacy.secure_aggregation.messages import Message
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.wire import (
    HEADER_BYTES,
    MalformedMessageError,
    kind_of,
    num_bytes,
    pack,
    unpack,
)

CHUNK_BYTES = 1 << 20
"""What is sent at a time."""

_SERVICE, _METHOD, _KEY = "phalanx.SecureAggregation", "Exchange", "phalanx-key"
_OPTIONS = [
    ("grpc.max_receive_message_length", CHUNK_BYTES),
    ("grpc.max_send_message_length", CHUNK_BYTES),
    ("grpc.so_reuseport", 0),
]
_LOCAL = ("localhost", "127.0.0.1", "[::1]", "unix")
_CUT_OFF_S = 0.2  # within which gRPC says that a caller hung up

Keys = Mapping[str, str]
"""Who may speak to a server: a secret for every name."""


class NotNowError(Exception):
    """A message that a server cannot take now: too early, too late, or out of order."""


class RoundOverError(NotNowError):
    """A share that comes too late."""


class Peer(NamedTuple):
    """A server as others see it.

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


def fresh_keys(setup: SecureSetup) -> dict[str, dict[str, str]]:
    """For each server, who may speak to it and by which secret."""
    workers = [worker_name(worker) for worker in range(setup.num_workers)]
    speakers = {
        "model server": workers,
        "worker server": [*workers, "model server"],
        "dealer": ["model server", "worker server"],
    }
    return {
        server: {name: secrets.token_urlsafe(32) for name in names}
        for server, names in speakers.items()
    }


def worker_name(worker: int) -> str:
    """What a worker is called in the table of keys."""
    return f"worker {worker}"


class Door:
    """A server's end: takes messages of known senders in, and sends the answers.

    Args:
        setup: what was agreed.
        keys: who may send.
        address: where to listen; port 0 takes any.
        answer: of the sender's name and the message; runs in several threads.
        present: how many workers are in the round.
        admits: of the sender's name and a kind: whether it may send such messages.
        malformed: is told the name of a sender of bytes that are no message.
        patience_s: how long a sender may take over one message; it may send one at a time.
        credentials: of `grpc.ssl_server_credentials`; None: not encrypted, which is refused unless
            it listens on this machine alone.
        plain: do not encrypt, wherever it listens.
    """

    def __init__(
        self,
        setup: SecureSetup,
        keys: Keys,
        address: str,
        answer: Callable[[str, Message], Message],
        *,
        admits: Callable[[str, type[Any]], bool],
        present: Callable[[], int] = lambda: 0,
        malformed: Callable[[str], None] = lambda name: None,
        patience_s: float = 60.0,
        credentials: Any = None,
        plain: bool = False,
    ) -> None:
        self._grpc = import_grpc()
        self._setup, self._keys, self._answer = setup, dict(keys), answer
        self._admits, self._present, self._malformed = admits, present, malformed
        self._patience_s, self._speaking, self._lock = patience_s, set[str](), threading.Lock()
        # A thread for everybody, so that nobody waits for the slow ones.
        self._server = self._grpc.server(ThreadPoolExecutor(len(keys) + 2), options=_OPTIONS)
        handler = self._grpc.stream_stream_rpc_method_handler(self._exchange)
        service = self._grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler})
        self._server.add_generic_rpc_handlers((service,))
        self.address = self._listen(address, credentials, plain)
        self._server.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.stop(grace=0.5).wait()

    def _listen(self, address: str, credentials: Any, plain: bool) -> str:
        if credentials is None:
            require_local(address, plain)
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        return f"{address.rpartition(':')[0]}:{port}"

    def _exchange(self, chunks: Iterator[bytes], context: Any) -> Iterator[bytes]:
        code = self._grpc.StatusCode
        name = self._sender(context)
        if name is None:
            context.abort(code.UNAUTHENTICATED, "nobody is known by this key")
            return
        try:
            answer = self._answer(name, self._heard(name, chunks, context))
        except self._grpc.RpcError:  # the sender hung up, or took too long
            return
        except MalformedMessageError as error:
            self._malformed(name)
            context.abort(code.INVALID_ARGUMENT, str(error))
        except RoundOverError as error:
            context.abort(code.OUT_OF_RANGE, str(error))
        except NotNowError as error:
            context.abort(code.FAILED_PRECONDITION, str(error))
        except ReusedRandomnessError as error:
            context.abort(code.ALREADY_EXISTS, str(error))
        except TooManyByzantineError as error:
            context.abort(code.ABORTED, str(error))
        except ServerLostError as error:
            context.abort(code.UNAVAILABLE, str(error))
        else:
            yield from in_chunks(pack(answer, self._setup))

    def _sender(self, context: Any) -> str | None:
        given = dict(context.invocation_metadata()).get(_KEY, "")
        found = None
        for name, key in self._keys.items():  # all of them: time must not tell which is close
            if hmac.compare_digest(str(given).encode(), key.encode()):
                found = name
        return found

    def _heard(self, name: str, chunks: Iterable[bytes], context: Any) -> Message:
        """The message, from a sender that may send it, one at a time and not for ever."""
        with self._lock:
            if name in self._speaking:
                raise NotNowError(f"{name} is sending something else")
            self._speaking.add(name)
        over = threading.Event()
        if not context.add_callback(over.set):
            over.set()
        limit = threading.Timer(self._patience_s, context.cancel)
        limit.daemon = True
        limit.start()
        try:
            return gather(chunks, self._setup, self._present(), partial(self._require, name))
        except MalformedMessageError:
            # What was cut off ends too early, too, and shows why a moment later; it is no malice.
            if not over.wait(_CUT_OFF_S):
                raise
            raise NotNowError(f"{name} hung up") from None
        finally:
            limit.cancel()
            with self._lock:
                self._speaking.discard(name)

    def _require(self, name: str, kind: type[Any]) -> None:
        if not self._admits(name, kind):
            raise MalformedMessageError(f"{name} may not send {kind.__name__}")


class Line:
    """A caller's end: one connection to a server."""

    def __init__(self, setup: SecureSetup, peer: Peer) -> None:
        grpc = import_grpc()
        self._setup, self._key = setup, peer.key
        self._grpc, self.address = grpc, peer.address
        if peer.credentials is None:
            require_local(peer.address, peer.plain)
            self._channel = grpc.insecure_channel(peer.address, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(peer.address, peer.credentials, options=_OPTIONS)
        self._exchange = self._channel.stream_stream(f"/{_SERVICE}/{_METHOD}")

    def ask(self, message: Message, timeout_s: float, present: int = 0) -> Message:
        """Sends a message and waits for the answer, where so many workers are in the round.

        Raises:
            ServerLostError: if the server is gone, silent for too long, or talks nonsense.
            NotNowError: if it cannot take this message now.
            TooManyByzantineError: if it found too many unusable messages.
            ReusedRandomnessError: if the randomness of this round is spent.
            MalformedMessageError: if it finds no sense in the message.
        """
        metadata = ((_KEY, self._key),)
        call = self._exchange(
            in_chunks(pack(message, self._setup)), timeout=timeout_s, metadata=metadata
        )
        try:
            return gather(call, self._setup, present)
        except self._grpc.RpcError as error:
            raise self._translated(error) from error
        except MalformedMessageError as error:
            raise ServerLostError(f"{self.address} answers nonsense: {error}") from error

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def _translated(self, error: Any) -> Exception:
        text = str(error.details())
        if error.code() == self._grpc.StatusCode.ABORTED:
            return DecodeError(text, workers=[], bound=0)
        kinds = {
            "FAILED_PRECONDITION": NotNowError,
            "OUT_OF_RANGE": RoundOverError,
            "INVALID_ARGUMENT": MalformedMessageError,
            "ALREADY_EXISTS": ReusedRandomnessError,
        }
        name = error.code().name
        if name in kinds:
            return kinds[name](text)
        return ServerLostError(f"{self.address} does not answer: {name}, {text}")


def in_chunks(data: bytes) -> Iterator[bytes]:
    """The bytes, a little at a time."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def gather(
    chunks: Iterable[bytes],
    setup: SecureSetup,
    present: int,
    admitted: Callable[[type[Any]], None] = lambda kind: None,
) -> Message:
    """The message that comes in chunks; allocates no more than its kind needs.

    Raises:
        MalformedMessageError: if it is none, or longer or shorter than it must be.
    """
    source = iter(chunks)
    first = next(source, b"")
    kind = kind_of(first[:HEADER_BYTES])
    admitted(kind)
    expected = num_bytes(kind, setup, present)
    data = bytearray(first)
    for chunk in source:
        data += chunk
        if len(data) > expected:
            break
    return unpack(data, setup, present)


def require_local(address: str, plain: bool) -> None:
    """Raises ValueError if others could listen to what goes to this address."""
    host = address.rpartition(":")[0] if not address.startswith("unix:") else "unix"
    if not plain and host not in _LOCAL:
        raise ValueError(
            f"address must be on this machine unless credentials are given, got {address}; or say "
            "plain=True"
        )


def import_grpc() -> ModuleType:
    """The library, imported where it is used: most of the package does without.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module("grpc")
    except ImportError as error:
        raise ImportError(
            "secure aggregation over a network needs gRPC: pip install 'phalanx[secure]'"
        ) from error
