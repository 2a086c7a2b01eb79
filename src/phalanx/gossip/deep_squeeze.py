"""DeepSqueeze: error-compensated compressed gossip."""

from dataclasses import dataclass, field

from torch import Tensor

from phalanx.compression import Compressor, ScaledSign
from phalanx.gossip.base import Gossip, GossipRound, Network, State
from phalanx.gossip.broadcast import compressed, initial, require_plain_compressor
from phalanx.gossip.checks import require_consensus_rate
from phalanx.gossip.edges import per_edge


@dataclass(frozen=True)
class DeepSqueeze(Gossip):
    """Sends its tensors compressed, with what earlier messages left out added.

    Whole tensors are compressed, not differences: where nodes agree, the error does not vanish, so
    the step towards the neighbours has to be small.

    Guarantee: the mean over the nodes stays.
    Wire: the compressor's messages, one a tensor, to every neighbour.
    Cost: that of encoding, and of decoding for each neighbour. Memory: one tensor's size.
    Source: Tang, Lian, Qiu, Yuan, Zhang, Zhang, Liu, "DeepSqueeze: Decentralization Meets
    Error-Compensated Compression", 2019.

    >>> import torch
    >>> from phalanx.compression import TopK
    >>> from phalanx.gossip import SimulatedNetwork, Topology, mix
    >>> everything = DeepSqueeze(TopK(ratio=1.0), consensus_rate=1.0)
    >>> network = SimulatedNetwork(Topology.complete(2))
    >>> mix(everything, network, {"w": torch.tensor([[4.0], [2.0]])}).values["w"].tolist()
    [[3.0], [3.0]]
    """

    compressor: Compressor = field(default_factory=ScaledSign)
    """What is done to the tensors; a biased one, as error feedback wants it."""
    consensus_rate: float = 0.05
    """Factor on the step to the neighbours (gamma). Too large diverges; has to be tuned."""

    def __post_init__(self) -> None:
        require_plain_compressor(self.compressor)
        if self.compressor.unbiased:
            raise ValueError(
                f"compressor must be a biased one (with rescale=False, say), got {self.compressor}"
            )
        require_consensus_rate(self.consensus_rate)

    def init(self, like: Tensor, network: Network) -> State:
        """An empty memory, and the compressor's own."""
        return (like.new_zeros(like.shape), *initial(self.compressor, like))

    def mix(
        self, tensors: list[Tensor], states: list[State], round: GossipRound
    ) -> tuple[list[Tensor], list[State]]:
        """What was sent of the tensors pulls at the neighbours; the rest is remembered."""
        wanted = [x + state[0] for x, state in zip(tensors, states, strict=True)]
        inner = [state[1:] for state in states]
        broadcast, inner = compressed(self.compressor, wanted, inner, round)
        totals = round.network.broadcast(broadcast)
        edges = round.network.edges
        own = edges.total(edges.weights)
        mixed = [
            x + self.consensus_rate * (total - per_edge(own, x) * sent)
            for x, sent, total in zip(tensors, broadcast.values, totals, strict=True)
        ]
        following = [
            (one - sent, *more)
            for one, sent, more in zip(wanted, broadcast.values, inner, strict=True)
        ]
        return mixed, following
