"""Gossip network simulated in one process, vectorised over the nodes."""

import torch
from torch import Tensor

from phalanx.gossip.edges import as_rows
from phalanx.gossip.network import NeighborBroadcast, Network
from phalanx.gossip.topology import Topology


class SimulatedNetwork(Network):
    """A network whose nodes are all here: the first axis of every tensor.

    Nothing is sent; what would have been is counted to the byte.
    Cost: a product with the mixing matrix for what is told to all, a copy for what is swapped.

    >>> from phalanx.gossip import SimulatedNetwork, Topology
    >>> network = SimulatedNetwork(Topology.ring(4))
    >>> network.swap([torch.arange(8.0)])[0].tolist()  # 0 tells 1 and 3, 1 tells 0 and 2, ...
    [2.0, 6.0, 0.0, 4.0, 3.0, 7.0, 1.0, 5.0]
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        place = {
            (self.edges.nodes[owner], peer): edge
            for edge, (owner, peer) in enumerate(
                zip(self.edges.owners.tolist(), self.edges.peers.tolist(), strict=True)
            )
        }
        self._reverse = torch.tensor([place[peer, node] for node, peer in place], dtype=torch.int64)
        self._others = topology.weights - topology.weights.diag().diag()

    def swap(self, outgoing: list[Tensor]) -> list[Tensor]:
        """What the neighbour of each edge sent along it."""
        self._count_swap(outgoing)
        return [x[self._reverse.to(x.device)] if len(x) else x for x in outgoing]

    def broadcast(self, broadcast: NeighborBroadcast) -> list[Tensor]:
        """The product of the neighbours' weights and the values."""
        self._count_broadcast(broadcast)
        return [(self._others.to(x) @ as_rows(x)).view_as(x) for x in broadcast.values]

    def mean(self, values: list[Tensor]) -> list[Tensor]:
        """The mean over the first axis."""
        self._count_mean(values)
        return [x.mean(dim=0, keepdim=True).expand_as(x).clone() for x in values]
