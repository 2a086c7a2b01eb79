"""Exact averaging over all nodes, the baseline of gossip."""

from dataclasses import dataclass

from torch import Tensor

from phalanx.gossip.base import Gossip, GossipRound, Network, State


@dataclass(frozen=True)
class AllReduceAveraging(Gossip):
    """Replaces every node's tensors by their mean over all nodes, neighbours or not.

    Guarantee: consensus after one round.
    Wire: `2 (n - 1) / n` times the tensors, as ring all-reduces send it: by that formula, for
    nobody counts it on the way.
    Cost: a pass.
    Source: Patarasuk, Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations",
    Journal of Parallel and Distributed Computing 2009.

    >>> import torch
    >>> from phalanx.gossip import SimulatedNetwork, Topology, mix
    >>> network = SimulatedNetwork(Topology.ring(4))
    >>> mix(AllReduceAveraging(), network, {"w": torch.tensor([9.0, 0.0, 0.0, 3.0])}).values["w"]
    tensor([3., 3., 3., 3.])
    """

    def init(self, like: Tensor, network: Network) -> State:
        """Nothing."""
        return ()

    def mix(
        self, tensors: list[Tensor], states: list[State], round: GossipRound
    ) -> tuple[list[Tensor], list[State]]:
        """The mean."""
        return round.network.mean(tensors), states
