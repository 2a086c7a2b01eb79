"""Networks that move values between neighbouring nodes, and count the bytes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.gossip.edges import Edges
from phalanx.gossip.topology import Topology


class NeighborBroadcast(NamedTuple):
    """What nodes send to all their neighbours.

    Attributes:
        values: what the neighbours decode: tensors `(nodes, ...)`.
        num_bytes: of the message of each node that is here.
        write: the message of the node at a place, as uint8.
        read: what a message says: tensors like `values`, without the axis of the nodes. Raises a
            `WireError` if it is none.
        most_bytes: what a message has at most; None if all have the same length.
    """

    values: list[Tensor]
    num_bytes: list[int]
    write: Callable[[int], Tensor]
    read: Callable[[Tensor], list[Tensor]]
    most_bytes: int | None = None


class Network(ABC):
    """Moves values between neighbours, and counts the bytes.

    Attributes:
        topology: who talks to whom.
        edges: the nodes that are here, and their edges.
        bytes_sent: `(nodes here,)` int64; what each has sent so far.
    """

    def __init__(self, topology: Topology, nodes: Sequence[int] | None = None) -> None:
        self.topology = topology
        self.edges: Edges = topology.edges_at(nodes)
        self.bytes_sent = torch.zeros(len(self.edges.nodes), dtype=torch.int64)

    def begin(self, step: int) -> None:  # noqa: B027 - most networks have nothing to compare
        """Is told the number of the round that begins; neighbours are to be at the same one."""

    @abstractmethod
    def swap(self, outgoing: list[Tensor]) -> list[Tensor]:
        """Sends something to each neighbour: tensors `(edges, ...)`; gives what comes."""

    @abstractmethod
    def broadcast(self, broadcast: NeighborBroadcast) -> list[Tensor]:
        """Sends the same to all neighbours.

        Returns:
            The sums of what the neighbours sent, times their weights: tensors `(nodes, ...)`.
        """

    @abstractmethod
    def mean(self, values: list[Tensor]) -> list[Tensor]:
        """The mean over all nodes of the network, at every node: tensors `(nodes, ...)`."""

    def _count_swap(self, outgoing: list[Tensor]) -> None:
        """Adds what goes out along the edges of each node."""
        per_edge = sum(x[0].numel() * x.element_size() for x in outgoing if len(x))
        degrees = torch.bincount(self.edges.owners, minlength=len(self.bytes_sent))
        self.bytes_sent += per_edge * degrees

    def _count_broadcast(self, broadcast: NeighborBroadcast) -> None:
        """Adds the messages, once a neighbour, and their lengths if these have to be sent."""
        length = 0 if broadcast.most_bytes is None else 8
        degrees = torch.bincount(self.edges.owners, minlength=len(self.bytes_sent))
        self.bytes_sent += (torch.tensor(broadcast.num_bytes) + length) * degrees

    def _count_mean(self, values: list[Tensor]) -> None:
        """Adds what a node sends in a ring all-reduce: a formula, as nobody sees it on the wire."""
        size, nodes = sum(x[0].numel() * x.element_size() for x in values), self.topology.num_nodes
        self.bytes_sent += round(2 * (nodes - 1) * size / nodes)
