"""Gossip network of `torch.distributed` processes, one node per process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from phalanx.communication.agreement import StepCheck, require_agreement
from phalanx.communication.point_to_point import Peers
from phalanx.communication.wire import integers_from_bytes, integers_to_bytes, to_bytes
from phalanx.errors import WireError, naming, require
from phalanx.gossip.broadcast import read
from phalanx.gossip.network import NeighborBroadcast, Network
from phalanx.gossip.topology import Topology


class ProcessNetwork(Network):
    """A network of processes: this one is the node of its rank; neighbours exchange raw bytes.

    What comes is not trusted: values that are not finite, and bytes that are no message, raise a
    `WireError` that names the neighbour. A neighbour that is gone, or silent for longer than the
    timeout of the group, raises a `RankLostError` with its rank. After either, nodes have not all
    taken the same rounds: start from the last checkpoint. Neighbours that are at different rounds,
    after checkpoints of different rounds, say, raise a `DisagreementError` before anything else is
    sent; for that each sends the number of the round, 8 bytes that `bytes_sent` does not count.
    """

    def __init__(self, topology: Topology, group: dist.ProcessGroup | None = None) -> None:
        """The network as this process sees it; `torch.distributed` must have been started.

        Args:
            topology: with one node a rank of the group.
            group: the processes; all of them by default.

        Raises:
            ValueError: if there is not one rank a node.
        """
        self._peers = Peers(group)
        if self._peers.size != topology.num_nodes:
            raise ValueError(
                f"topology must have one node a rank, got {topology.num_nodes} nodes for "
                f"{self._peers.size} ranks"
            )
        super().__init__(topology, [self._peers.rank])
        self._step: int | None = None

    def require_agreement(self, facts: Mapping[str, Any], device: torch.device | str) -> None:
        """Compares the topology and other facts among all ranks; see the function of that name."""
        require_agreement(self._peers, {"topology": self.topology, **facts}, device)

    def begin(self, step: int) -> None:
        """Keeps the number of the round, which goes to the neighbours before all else."""
        self._step = step

    def swap(self, outgoing: list[Tensor]) -> list[Tensor]:
        """To each neighbour its row of every tensor, in one message."""
        self._count_swap(outgoing)
        peers = self.edges.peers.tolist()
        if not peers:
            return outgoing
        rows = [to_bytes([x[edge] for x in outgoing]) for edge in range(len(peers))]
        come = self._exchange(rows, [len(row) for row in rows])
        like = [x[0] for x in outgoing]
        parts = []
        for peer, row in zip(peers, come, strict=True):
            with _from_node(peer):
                parts.append(read(row, like))
        return [torch.stack([part[place] for part in parts]) for place in range(len(outgoing))]

    def broadcast(self, broadcast: NeighborBroadcast) -> list[Tensor]:
        """The node's message to all neighbours; theirs are added in the order of their numbers."""
        self._count_broadcast(broadcast)
        peers, message = self.edges.peers.tolist(), broadcast.write(0)
        lengths = [len(message)] * len(peers)
        if broadcast.most_bytes is not None:
            lengths = self._lengths(message, broadcast.most_bytes)
        totals = [torch.zeros_like(x[0]) for x in broadcast.values]
        come = self._exchange([message] * len(peers), lengths)
        for peer, weight, row in zip(peers, self.edges.weights.tolist(), come, strict=True):
            with _from_node(peer):
                said = broadcast.read(row)
            for total, one in zip(totals, said, strict=True):
                total.add_(one, alpha=weight)
        return [total.unsqueeze(0) for total in totals]

    def mean(self, values: list[Tensor]) -> list[Tensor]:
        """All-reduces, one a tensor; gloo and NCCL give all ranks the same bits."""
        self._count_mean(values)
        self._compare_steps(values[0].device)
        found = [x / self.topology.num_nodes for x in values]
        with naming():
            for x in found:
                dist.all_reduce(x, group=self._peers.group)
        return found

    def _exchange(self, outgoing: list[Tensor], lengths: list[int]) -> list[Tensor]:
        """A row of bytes to each neighbour, and one of the given length from each."""
        device = outgoing[0].device if outgoing else torch.device("cpu")
        nothing = torch.empty(0, dtype=torch.uint8, device=device)
        self._compare_steps(device)
        there, here = [nothing] * self._peers.size, [nothing] * self._peers.size
        peers = self.edges.peers.tolist()
        for peer, row, length in zip(peers, outgoing, lengths, strict=True):
            there[peer] = row
            here[peer] = torch.empty(length, dtype=torch.uint8, device=device)
        self._peers.swap(there, here).wait()
        return [here[peer] for peer in peers]

    def _compare_steps(self, device: torch.device) -> None:
        """Once a round: messages of another one might have other lengths, which gloo dies of."""
        if self._step is not None:
            step, self._step = self._step, None
            StepCheck(self._peers, step, device, self.edges.peers.tolist()).finish()

    def _lengths(self, message: Tensor, most: int) -> list[int]:
        """The lengths of the neighbours' messages, none of them longer than messages can be."""
        peers = self.edges.peers.tolist()
        own = integers_to_bytes([len(message)], "<i8").to(message.device)
        rows = self._exchange([own] * len(peers), [8] * len(peers))
        lengths = [integers_from_bytes(row, "<i8")[0] for row in rows]
        for peer, length in zip(peers, lengths, strict=True):
            with _from_node(peer):
                require(0 <= length <= most, f"have 0 to {most} bytes, got {length}")
        return lengths


@contextmanager
def _from_node(peer: int) -> Iterator[None]:
    """Names the neighbour in errors about its messages."""
    try:
        yield
    except WireError as error:
        raise WireError(f"node {peer}: {error}") from error
