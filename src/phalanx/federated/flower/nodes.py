"""Nodes of a federation: which of them is which client, and how many samples it says it holds."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from phalanx.errors import WireError, require
from phalanx.federated.flower.records import import_flower, number

_MAX_SAMPLES = 2**40


class NodeRegistry:
    """Registry of the nodes of a federation, which come and go.

    Every node is asked once who it is. A client belongs to the node that named itself so first, as
    long as that is connected; and it holds as many samples as it said first: a node that says
    anything else is refused.

    Args:
        grid: of Flower.
        sizes: `(clients,)`, where the numbers of samples are put; 0 is a client not heard of yet.
        timeout_s: after which a node that has not answered is asked again.
    """

    def __init__(self, grid: Any, sizes: Tensor, timeout_s: float) -> None:
        self._grid, self._sizes, self._timeout_s = grid, sizes, timeout_s
        self._clients: dict[int, int] = {}  # by node
        self._asked: dict[int, tuple[str, float]] = {}  # message and time, by node
        self._online: set[int] = set()
        self.refused: dict[int, str] = {}  # why a node is none of ours

    @property
    def known(self) -> list[int]:
        """Clients that were heard of."""
        found: list[int] = self._sizes.nonzero().flatten().tolist()
        return found

    def connected(self) -> dict[int, int]:
        """The nodes that are connected now, by client."""
        return {self._clients[one]: one for one in sorted(self._online & set(self._clients))}

    def refresh(self) -> None:
        """Looks who is connected, asks who is new, and hears who has answered; never waits."""
        self._online = set(self._grid.get_node_ids())
        now = time.monotonic()
        for node in sorted(self._online - set(self._clients) - set(self.refused)):
            sent, at = self._asked.get(node, ("", 0.0))
            if not sent or now - at > self._timeout_s:
                self._ask(node, now)
        for node, (sent, _) in list(self._asked.items()):
            for reply in pulled(self._grid, sent):
                del self._asked[node]
                self._hear(node, reply)

    def _ask(self, node: int, now: float) -> None:
        flower = import_flower()
        message = flower.Message(
            flower.RecordDict(), node, "query.describe", ttl=self._timeout_s, group_id="describe"
        )
        for sent in self._grid.push_messages([message]):
            if sent:
                self._asked[node] = sent, now

    def _hear(self, node: int, reply: Any) -> None:
        if isinstance(reply, Exception) or (reply.has_error() and lost(reply)):
            return  # asked again, if it is connected
        try:
            if reply.has_error():
                raise WireError(reason_of(reply))
            told = reply.content.get("metrics")
            client, size = number(told, "client", int), number(told, "num_samples", int)
            require(0 <= client < len(self._sizes), "name a client")
            require(0 < size < _MAX_SAMPLES, "say how many samples there are")
            before = int(self._sizes[client])
            require(before in (0, size), f"say as many samples as before, {before}")
            holder = self.connected().get(client, node)
            require(holder == node, f"name a client that is not taken by a node, as {client} is")
        except WireError as error:
            self.refused[node] = str(error)
            return
        self._clients = {one: own for one, own in self._clients.items() if own != client}
        self._clients[node] = client
        self._sizes[client] = size


def pulled(grid: Any, sent: str) -> Iterator[Any]:
    """The reply to a message, if it is there; an exception in its place if it cannot be read.

    One by one: a reply that Flower cannot read takes no other with it.
    """
    import httpx  # what Flower speaks by; it brings it

    try:
        yield from grid.pull_messages([sent])
    except (httpx.HTTPError, ConnectionError):  # not the client's doing: tried again
        return
    except Exception as error:  # whatever Flower raises for the bytes of a peer
        yield error


_LOST = (3, 4, 5)  # codes of Flower: the message, its reply or the node is not available


def lost(reply: Any) -> bool:
    """Whether an error reply says that nobody could answer."""
    return reply.error.code in _LOST


def reason_of(reply: Any) -> str:
    """What an error reply says, in one line of bounded length: it is a peer's word."""
    lines: Iterable[str] = str(reply.error.reason or "").strip().splitlines()
    last = [line for line in lines if line.strip()][-1:] or [f"error {reply.error.code}"]
    return printable(last[0].strip())


def printable(told: str) -> str:
    """A peer's word, as it may be shown."""
    return "".join(filter(str.isprintable, told))[:200]
