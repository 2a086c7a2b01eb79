"""Decentralised parallel SGD: uncompressed averaging with the neighbours."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from phalanx.gossip.base import Gossip, GossipRound, Network, State
from phalanx.gossip.broadcast import uncompressed
from phalanx.gossip.checks import require_diffusion
from phalanx.gossip.edges import per_edge


@dataclass(frozen=True)
class DPSGD(Gossip):
    """Replaces a node's tensors by the weighted mean of its own and its neighbours'.

    Guarantee: the mean over the nodes stays; a round multiplies the distance to it by at most
    `1 - spectral_gap`, with `diffusion=1`.
    Wire: the tensors, to every neighbour.
    Cost: one pass for each neighbour.
    Source: Lian, Zhang, Zhang, Hsieh, Zhang, Liu, "Can Decentralized Algorithms Outperform
    Centralized Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent",
    NeurIPS 2017, algorithm 1.

    >>> import torch
    >>> from phalanx.gossip import SimulatedNetwork, Topology, mix
    >>> network = SimulatedNetwork(Topology.complete(4))
    >>> mix(DPSGD(), network, {"w": torch.tensor([9.0, 0.0, 0.0, 3.0])}).values["w"]
    tensor([3., 3., 3., 3.])
    """

    diffusion: float | Literal["optimal"] = 1.0
    """Factor on the step to the neighbours' mean; "optimal" contracts most on the topology."""

    def __post_init__(self) -> None:
        require_diffusion(self.diffusion)

    def init(self, like: Tensor, network: Network) -> State:
        """Nothing."""
        return ()

    def mix(
        self, tensors: list[Tensor], states: list[State], round: GossipRound
    ) -> tuple[list[Tensor], list[State]]:
        """`x_i + diffusion * sum over j of w_ij (x_j - x_i)`."""
        network = round.network
        factor = network.topology.diffusion(self.diffusion)
        totals = network.broadcast(uncompressed(tensors))
        own = network.edges.total(network.edges.weights)
        return [
            x + factor * (total - per_edge(own, x) * x)
            for x, total in zip(tensors, totals, strict=True)
        ], states
