"""The common part of all servers of secure aggregation: listening, uploads, views of a round."""

import hmac
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from jaxtyping import Int64
from torch import Tensor

from phalanx.privacy.secure_aggregation import transport
from phalanx.privacy.secure_aggregation.messages import MalformedMessageError, Message, pack
from phalanx.privacy.secure_aggregation.protocol import SecureSetup
from phalanx.privacy.secure_aggregation.transport import RoundOverError, UnexpectedMessageError

_CUT_OFF_S = 0.2  # within which gRPC says that a caller hung up
_AHEAD = 2  # rounds that are open at a time: the servers do not close a round together

Known = TypeVar("Known")
View = TypeVar("View", bound="ServerView")


def known(value: Known | None) -> Known:
    """The result of an earlier step of the round.

    Raises:
        ValueError: if that step was left out.
    """
    if value is None:
        raise ValueError("the steps of a round must be taken in their order, one was left out")
    return value


@dataclass(frozen=True)
class ServerView(ABC):
    """Knowledge of a round that both servers have."""

    setup: SecureSetup
    """The public parameters."""
    round: int
    """The number of the round."""
    marked: frozenset[int] = frozenset()
    """Workers who sent something malformed, or two different things."""
    workers: tuple[int, ...] = ()
    """Who is in the round."""
    masks: Int64[Tensor, "workers dim"] | None = None
    """Its shares of the masks, expanded."""
    masked: Int64[Tensor, "present dim"] | None = None
    """The messages less their masks, opened: uniform noise."""

    @abstractmethod
    def receive(self: View, share: Any) -> View:
        """Takes a worker's share in; one that is malformed, or a second one, marks its sender."""

    def mark(self: View, worker: int) -> View:
        """Notes that a worker sent something malformed; an id that no worker has is ignored."""
        return replace(self, marked=self.marked | {worker}) if self.setup.has(worker) else self


class Uploads(Generic[View]):
    """The views of the rounds that are open, filled by many threads.

    Args:
        fresh: an empty view of either server, for a round.
    """

    def __init__(self, fresh: Callable[[int], View]) -> None:
        self._fresh: Callable[[int], View] = fresh
        self._open = 0
        self._views: dict[int, View] = {}
        self._changed = threading.Condition()

    def take(self, name: str, share: Any) -> None:
        """Takes a share in; one that carries somebody else's id marks its sender.

        Raises:
            RoundOverError: if the round is over.
            UnexpectedMessageError: if it is not open yet.
        """
        with self._changed:
            number = share.round
            if number < self._open:
                raise RoundOverError(f"round {number} is over, {self._open} is open")
            if number >= self._open + _AHEAD:
                raise UnexpectedMessageError(f"round {number} is not open yet, {self._open} is")
            if name == transport.worker_name(share.worker):
                self._views[number] = self._view(number).receive(share)
                self._changed.notify_all()
            else:
                self.mark(name)

    def mark(self, name: str) -> None:
        """Notes that a worker sent something malformed; other names are ignored."""
        found = re.fullmatch(r"worker (\d+)", name)
        if found:
            with self._changed:
                self._views[self._open] = self._view(self._open).mark(int(found[1]))
                self._changed.notify_all()

    def wait_for(self, done: Callable[[View], bool], round: int, timeout_s: float) -> bool:
        """Waits until the view of a round is as wanted, or time is up; says which."""
        with self._changed:
            return self._changed.wait_for(lambda: done(self._view(round)), timeout_s)

    def finish(self, round: int) -> View:
        """The view of a round; closes it and all before, and opens the next."""
        with self._changed:
            view = self._view(round)
            self._open = round + 1
            self._views = {one: kept for one, kept in self._views.items() if one > round}
            return view

    def skip(self, round: int, *, used: bool) -> int:
        """Opens this round, or the first after those that are over; says which.

        Args:
            round: the first that may be opened.
            used: whether rounds of which somebody has sent a share are over, too.
        """
        with self._changed:
            after = [number + 1 for number in self._views] if used else []
            self._open = max([self._open, round, *after])
            self._views = {one: kept for one, kept in self._views.items() if one >= self._open}
            return self._open

    def _view(self, round: int) -> View:
        return self._views.get(round, self._fresh(round))


class Server(ABC):
    """A gRPC server that answers the messages of callers whose keys it knows.

    A caller may take `patience_s` over a message, and send one at a time; `uploads` notes who sends
    bytes that are none. What is not encrypted is refused unless it listens on this machine alone,
    and so is a table of keys in which a caller has none of its own.
    """

    _name: ClassVar[str]
    """What others call it."""

    def __init__(
        self,
        setup: SecureSetup,
        keys: transport.Keys,
        address: str,
        credentials: Any,
        plain: bool,
        patience_s: float = 60.0,
        uploads: Uploads[Any] | None = None,
        peers: Mapping[str, transport.Peer | None] = MappingProxyType({}),
    ) -> None:
        if credentials is None:
            transport.require_local(address, plain)
        own = {name: peer.key for name, peer in peers.items() if peer is not None}
        transport.require_keys(keys, transport.callers(setup)[self._name], own)
        self._grpc = transport.import_grpc()
        self._setup, self._keys, self._malformed = setup, dict(keys), uploads
        self._patience_s, self._sending, self._lock = patience_s, set[str](), threading.Lock()
        # One thread per caller, so that nobody waits for the slow ones.
        self._server = self._grpc.server(
            ThreadPoolExecutor(len(keys) + 2), options=transport.OPTIONS
        )
        handler = self._grpc.stream_stream_rpc_method_handler(self._exchange)
        service = self._grpc.method_handlers_generic_handler(
            transport.SERVICE, {transport.METHOD: handler}
        )
        self._server.add_generic_rpc_handlers((service,))
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ValueError(f"address must be free to listen at, got {address}") from error
        self.address = f"{address.rpartition(':')[0]}:{port}"
        """Where it listens."""
        self._server.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.stop(grace=0.5).wait()

    @abstractmethod
    def _admits(self, name: str, kind: type[Any]) -> bool:
        """Whether the caller of this name may send messages of this kind."""

    @abstractmethod
    def _answer(self, name: str, message: Message) -> Message:
        """The answer to a message; runs in several threads."""

    def _num_present(self) -> int:
        """How many workers are in the round, as far as the lengths of messages depend on it."""
        return 0

    def _exchange(self, chunks: Iterator[bytes], context: Any) -> Iterator[bytes]:
        name = self._caller(context)
        if name is None:
            context.abort(self._grpc.StatusCode.UNAUTHENTICATED, "nobody is known by this key")
            return
        try:
            answer = self._answer(name, self._message(name, chunks, context))
        except self._grpc.RpcError:  # the caller hung up, or took too long
            return
        except tuple(transport.STATUS_CODES) as error:
            if isinstance(error, MalformedMessageError) and self._malformed is not None:
                self._malformed.mark(name)
            status = next(
                code for kind, code in transport.STATUS_CODES.items() if isinstance(error, kind)
            )
            context.abort(self._grpc.StatusCode[status], str(error))
        else:
            yield from transport.in_chunks(pack(answer, self._setup))

    def _caller(self, context: Any) -> str | None:
        given = dict(context.invocation_metadata()).get(transport.KEY, "")
        found = None
        for name, key in self._keys.items():  # all of them: time must not tell which is close
            if hmac.compare_digest(str(given).encode(), key.encode()):
                found = name
        return found

    def _message(self, name: str, chunks: Iterable[bytes], context: Any) -> Message:
        """The message, from a caller that may send it, one at a time and not for ever."""
        with self._lock:
            if name in self._sending:
                raise UnexpectedMessageError(f"{name} is sending something else")
            self._sending.add(name)
        over = threading.Event()
        if not context.add_callback(over.set):
            over.set()
        limit = threading.Timer(self._patience_s, context.cancel)
        limit.daemon = True
        limit.start()
        try:
            admits = partial(self._admits, name)
            return transport.gather(chunks, self._setup, self._num_present(), admits)
        except MalformedMessageError:
            # What was cut off ends too early, too, and shows why a moment later; it is no malice.
            if not over.wait(_CUT_OFF_S):
                raise
            raise UnexpectedMessageError(f"{name} hung up") from None
        finally:
            limit.cancel()
            with self._lock:
                self._sending.discard(name)
