"""In-process grid: a federation on Flower without sockets, for tests and laptops."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from phalanx.federated.flower.records import import_flower

Fault = Callable[[Any], Any]
"""What becomes of a reply on its way: another message, or None if nothing arrives."""

Faults = Callable[[int, int], Fault | None]
"""Which fault there is, by client and round; a round is -1 where a client says who it is."""

_RUN, _SERVER = 1, 1


def nothing(reply: Any) -> None:
    """Fault of a message that is lost."""
    return


def disconnected(reply: Any) -> Any:
    """Fault of a node that is lost in a round, as the SuperLink tells of it."""
    return _failed(reply, 5, "Node Unavailable")


def delayed(seconds: float) -> Fault:
    """Fault of a node that is slow."""

    def fault(reply: Any) -> Any:
        reply.__dict__["_arrives_at"] = time.monotonic() + seconds
        return reply

    return fault


class InProcessGrid:
    """Grid of Flower whose nodes are called one after another, when a message is sent to them.

    The same apps as in a deployment, and much faster than Flower's simulation, which starts Ray.
    What nodes keep lasts as long as the grid.

    Args:
        client_app: what every node runs.
        num_clients: nodes; node `n` is client `n - 2`.
        faults: what goes wrong with replies, in tests.
        absent: clients that are not connected in a round; the round is -1 before the first.
    """

    def __init__(
        self,
        client_app: Callable[[Any, Any], Any],
        num_clients: int,
        faults: Faults = lambda client, step: None,
        absent: Callable[[int], Iterable[int]] = lambda step: (),
    ) -> None:
        flower = import_flower()
        self._client_app, self._faults, self._absent = client_app, faults, absent
        self._replies: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._step = -1
        self.contexts = {
            client + 2: flower.Context(
                _RUN,
                client + 2,
                {"partition-id": client, "num-partitions": num_clients},
                flower.RecordDict(),
                {},
            )
            for client in range(num_clients)
        }

    def get_node_ids(self) -> list[int]:
        """Nodes that are connected."""
        absent = set(self._absent(self._step))
        return [node for node in self.contexts if node - 2 not in absent]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Has every node answer."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """The replies that have arrived; each is handed over once."""
        now = time.monotonic()
        ready = [
            one
            for one in message_ids
            if one in self._replies and self._replies[one].__dict__.get("_arrives_at", 0) <= now
        ]
        return [self._replies.pop(one) for one in ready]

    def send_and_receive(
        self, messages: Iterable[Any], *, timeout: float | None = None
    ) -> list[Any]:
        """Both; nobody is waited for."""
        return self.pull_messages(self.push_messages(messages))

    def _push(self, message: Any) -> str:
        sent = f"message-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = sent  # which the SuperLink would do
        node, group = message.metadata.dst_node_id, message.metadata.group_id
        step = int(group) if group.isdigit() else -1
        self._step = max(self._step, step)
        try:
            with _node_identity(node):
                reply = self._client_app(message, self.contexts[node])
        except Exception as error:  # as a node does: the app is the user's
            reply = _failed(message, 2, f"{type(error).__name__}: {error}", is_reply=False)
        fault = self._faults(node - 2, step)
        arrived = reply if fault is None else fault(reply)
        if arrived is not None:
            self._replies[sent] = arrived
        return sent


def run_in_process(
    server_app: Any,
    client_app: Any,
    num_clients: int,
    grid_class: type[InProcessGrid] = InProcessGrid,
    **options: Any,
) -> None:
    """Runs both apps of a federation in this process; options are those of `InProcessGrid`."""
    flower = import_flower()
    grid = grid_class(client_app, num_clients, **options)
    with _node_identity(_SERVER):
        server_app(grid, flower.Context(_RUN, _SERVER, {}, flower.RecordDict(), {}))


def _failed(reply: Any, code: int, reason: str, *, is_reply: bool = True) -> Any:
    """The error reply to a message, or in the place of a reply to it."""
    flower = import_flower()
    failed = flower.Message(flower.Error(code, reason), reply_to=reply)
    if is_reply:
        failed.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return failed


@contextmanager
def _node_identity(node: int) -> Iterator[None]:
    """Lends this process the identity that messages are made under.

    With the ids of messages the only use of what Flower keeps private.

    Raises:
        ImportError: if this version of Flower keeps it elsewhere.
    """
    try:
        identity = import_flower("flwr.supercore.task_identity").TaskIdentity
        before = {name: getattr(identity, f"_{name}") for name in ("run_id", "task_id", "node_id")}
    except (ImportError, AttributeError) as error:
        version = import_flower("flwr").__version__
        raise ImportError(
            f"flwr must keep the identity of tasks as 1.42 does, which {version} does not: "
            "the in-process grid needs pip install 'flwr==1.42.*'"
        ) from error
    identity.run_id, identity.task_id, identity.node_id = _RUN, 1, node
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(identity, f"_{name}", value)
