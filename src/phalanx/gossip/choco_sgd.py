"""CHOCO gossip: compressed differences to public copies."""

from dataclasses import dataclass, field

from torch import Tensor

from phalanx.compression import Compressor, ScaledSign
from phalanx.gossip.base import Gossip, GossipRound, Network, State
from phalanx.gossip.broadcast import compressed, initial, require_plain_compressor
from phalanx.gossip.checks import require_consensus_rate
from phalanx.gossip.edges import per_edge
from phalanx.gossip.topology import Topology


@dataclass(frozen=True)
class ChocoSGD(Gossip):
    """Tells the neighbours, compressed, how far a node is from what they know of it.

    Every node has a public copy that it and its neighbours know, at first zero. It sends what a
    compressor makes of the difference to its own values, everybody adds that to the copy, and the
    node moves towards its neighbours' copies.

    Guarantee: the mean over the nodes stays. With a compressor of contraction `delta` and the
    `safe_rate`, the squared distance falls by `1 - delta * gap^2 / 82` per round on average.
    Wire: the compressor's messages, one a tensor, to every neighbour.
    Cost: that of encoding, and of decoding for each neighbour. Memory: two tensors' size.
    Source: Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms
    with Compressed Communication", ICML 2019, algorithms 1 and 5 (sums of copies instead of
    copies).

    >>> import torch
    >>> from phalanx.compression import TopK
    >>> from phalanx.gossip import SimulatedNetwork, Topology, mix
    >>> everything = ChocoSGD(TopK(ratio=1.0), consensus_rate=1.0)
    >>> network = SimulatedNetwork(Topology.complete(2))
    >>> mix(everything, network, {"w": torch.tensor([[4.0], [2.0]])}).values["w"].tolist()
    [[3.0], [3.0]]
    """

    compressor: Compressor = field(default_factory=ScaledSign)
    """What is done to the differences."""
    consensus_rate: float = 0.4
    """Factor on the step to the neighbours' copies (gamma). Too large diverges; has to be tuned."""

    def __post_init__(self) -> None:
        require_plain_compressor(self.compressor)
        require_consensus_rate(self.consensus_rate)

    def safe_rate(self, topology: Topology, dim: int) -> float | None:
        """The consensus rate of the published guarantee: safe, and far below the best one.

        Args:
            topology: of the nodes.
            dim: values of the largest tensor.

        Returns:
            The rate; None for a compressor without a contraction.
        """
        delta = self.compressor.contraction(dim)
        if delta is None:
            return None
        gap, span = topology.spectral_gap, 1 - topology.eigenvalues[-1]
        bound = 16 * gap + gap**2 + 4 * span**2 + 2 * gap * span**2 - 8 * gap * delta
        return gap**2 * delta / bound

    def init(self, like: Tensor, network: Network) -> State:
        """Copies of zeros, the neighbours' weighted sums of them, and the compressor's own."""
        zeros = like.new_zeros(like.shape)
        return (zeros, zeros.clone(), *initial(self.compressor, like))

    def mix(
        self, tensors: list[Tensor], states: list[State], round: GossipRound
    ) -> tuple[list[Tensor], list[State]]:
        """Copies grow by what was sent; then a step from the own copy to the neighbours'."""
        differences = [x - state[0] for x, state in zip(tensors, states, strict=True)]
        inner = [state[2:] for state in states]
        broadcast, inner = compressed(self.compressor, differences, inner, round)
        totals = round.network.broadcast(broadcast)
        edges = round.network.edges
        own = edges.total(edges.weights)
        mixed, following = [], []
        for x, state, sent, total, more in zip(
            tensors, states, broadcast.values, totals, inner, strict=True
        ):
            copy, others = state[0] + sent, state[1] + total
            mixed.append(x + self.consensus_rate * (others - per_edge(own, x) * copy))
            following.append((copy, others, *more))
        return mixed, following
