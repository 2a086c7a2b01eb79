"""Moniqua: modulo-quantised gossip."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from phalanx.bits import pack, unpack
from phalanx.checks import require_above
from phalanx.gossip.base import Gossip, GossipRound, Network, State
from phalanx.gossip.checks import require_consensus_rate
from phalanx.gossip.edges import as_rows, per_edge


@dataclass(frozen=True)
class Moniqua(Gossip):
    """Sends where values stand on a circle; a neighbour, who is close, knows which turn is meant.

    Neighbours' values are less than `bound` apart. So they are sent modulo a circumference `B` a
    little more than twice that, rounded to one of `2 ** bits` places on the circle, `B / 2 ** bits`
    apart. The neighbour takes the value closest to its own that stands there. Nothing is remembered
    and no scale is sent. Rounding at random is alike on all nodes, so that nodes that agree stay as
    they are; rounding to the nearest leaves them where they are as soon as they share a place.

    **The bound has to hold, and no node can see whether it does.** Neighbours that are further
    apart take each other for closer than they are, and settle whole turns apart; where they are off
    by about half a turn, they may not even agree who is ahead, and the mean moves. How far apart
    nodes get depends on the learning rate: leave room.

    Guarantee: within the bound, every value is decoded to less than a place (half a place, to the
    nearest), and the mean over the nodes stays. With random rounding a round is that of `DPSGD`
    with `diffusion=consensus_rate` in expectation. Nodes come within some places of each other, not
    closer; with random rounding the fewer, the smaller the `consensus_rate`.
    Wire: `bits` bits a value, to every neighbour.
    Cost: a few passes for each neighbour. Memory: none between rounds.
    Source: Lu, De Sa, "Moniqua: Modulo Quantized Communication in Decentralized SGD", ICML 2020,
    algorithm 1, with places all around the circle (there, both of its ends have one), which makes
    it a little shorter.

    >>> import torch
    >>> from phalanx.gossip import SimulatedNetwork, Topology, mix
    >>> network = SimulatedNetwork(Topology.complete(2))
    >>> mixed = mix(Moniqua(bound=1.0), network, {"w": torch.tensor([[100.0], [100.5]])})
    >>> mixed.values["w"].squeeze().round(decimals=2), mixed.bytes_sent
    (tensor([100.2500, 100.2500]), tensor([1, 1]))
    """

    bound: float = 0.25
    """More than any value differs between neighbours, in every round (theta)."""
    bits: int = 8
    """Bits a value: 1 to 8 to the nearest, 2 to 8 at random."""
    rounding: Literal["random", "nearest"] = "random"
    """Whether places are drawn, with the value as their mean, or the nearest is taken."""
    consensus_rate: float = 1.0
    """Factor on the step to the neighbours (gamma); with few bits it has to be small."""

    def __post_init__(self) -> None:
        require_above(0, bound=self.bound)
        if self.rounding not in ("random", "nearest"):
            raise ValueError(f"rounding must be random or nearest, got {self.rounding}")
        least = 2 if self.rounding == "random" else 1
        if not least <= self.bits <= 8:
            raise ValueError(f"bits must be from {least} to 8, got {self.bits}")
        require_consensus_rate(self.consensus_rate)

    @property
    def error(self) -> float:
        """How far off a decoded value is at most."""
        return self._off * self.circumference

    @property
    def circumference(self) -> float:
        """After which values come again (B): the bound and the error fit into half of it."""
        return 2 * self.bound / (1 - 2 * self._off)

    @property
    def _off(self) -> float:
        """The error as a share of the circumference (delta)."""
        places = float(1 << self.bits)
        return 1 / places if self.rounding == "random" else 1 / (2 * places)

    def init(self, like: Tensor, network: Network) -> State:
        """Nothing."""
        return ()

    def mix(
        self, tensors: list[Tensor], states: list[State], round: GossipRound
    ) -> tuple[list[Tensor], list[State]]:
        """`x_i + rate * sum over j of w_ij (what i takes x_j for - what both take x_i for)`."""
        edges = round.network.edges
        stands = [self._on_circle(as_rows(x)) for x in tensors]
        codes = [self._codes(one, place, round) for place, one in enumerate(stands)]
        owners = edges.owners.to(tensors[0].device)
        sent = torch.cat(codes, dim=1)
        come = round.network.swap([_packed(sent, self.bits).index_select(0, owners)])[0]
        theirs = _unpacked(come, self.bits, sent.shape[1])
        mixed = []
        for x, stand, own, other in zip(
            tensors, stands, codes, theirs.split([one.shape[1] for one in codes], 1), strict=True
        ):
            # Whole turns are in both, and cancel.
            apart = self._offset(other, stand.index_select(0, owners))
            apart -= self._offset(own, stand).index_select(0, owners)
            pull = edges.total(apart.mul_(per_edge(edges.weights, apart)))
            step = self.consensus_rate * self.circumference
            mixed.append(torch.add(x, pull.view_as(x), alpha=step))
        return mixed, states

    def _on_circle(self, values: Float[Tensor, "nodes dim"]) -> Float[Tensor, "nodes dim"]:
        """Where values stand, as a share of a turn: from 0 to 1."""
        turns = values / self.circumference
        return turns - turns.floor()

    def _codes(
        self, stand: Float[Tensor, "nodes dim"], place: int, round: GossipRound
    ) -> UInt8[Tensor, "nodes dim"]:
        """The numbers of the places."""
        shift: float | Tensor = 0.5
        if self.rounding == "random":
            source = round.generator(place, "shared")
            drawn = torch.rand(stand.shape[1:], generator=source, dtype=stand.dtype)
            shift = drawn.to(stand.device)
        places = 1 << self.bits
        number = (stand * places).add_(shift).to(torch.int16)  # rounds down
        return number.bitwise_and_(places - 1).to(torch.uint8)

    def _offset(
        self, codes: UInt8[Tensor, "rows dim"], stand: Float[Tensor, "rows dim"]
    ) -> Float[Tensor, "rows dim"]:
        """How many turns the closest value at these places is from the one that stands here."""
        turns = codes.to(stand).div_(1 << self.bits).sub_(stand)
        return turns.sub_(turns.round())


def _packed(codes: UInt8[Tensor, "rows dim"], bits: int) -> UInt8[Tensor, "rows bytes"]:
    """Each row in as few bytes as it takes."""
    rows = [pack(row, bits) for row in codes]
    return torch.stack(rows)


def _unpacked(rows: UInt8[Tensor, "rows bytes"], bits: int, dim: int) -> UInt8[Tensor, "rows dim"]:
    """What was packed."""
    if not len(rows):
        return rows.new_empty(0, dim)
    return torch.stack([unpack(row, bits, dim) for row in rows])
