"""PowerGossip: low-rank differences along edges, by power iteration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.gossip.base import Gossip, GossipRound, Network, State
from phalanx.gossip.checks import require_diffusion
from phalanx.gossip.edges import per_edge

Factor = Float[Tensor, "edges size rank"]


@dataclass(frozen=True)
class PowerGossip(Gossip):
    """Averages what a low-rank approximation lets through of the difference to each neighbour.

    A tensor is the matrix of its first axis and all others. Both ends of an edge know a pair of
    thin factors of the difference `D` of their matrices. They fix one of them, orthonormal, send
    each other their matrix times it, and so learn the other, `D` times the first; then one moves by
    its product, and the other one against it. Next time they fix the other factor. Nothing has to
    be tuned. Tensors with one axis, and matrices with no more than `rank` rows or columns, are
    averaged as they are, in the first iteration of a round.

    Guarantee: the mean over the nodes stays, as edges move their ends by opposite amounts.
    Wire: to every neighbour `rank * columns` and `rank * rows` values a matrix, in turn.
    Cost: `4 * rows * columns * rank` operations for each neighbour and iteration. Memory: two
    factors for each.
    Source: Vogels, Karimireddy, Jaggi, "Practical Low-Rank Communication Compression in
    Decentralized Deep Learning", NeurIPS 2020, algorithm 1, and the authors' code for signs. Where
    nodes are equal, the difference is zero, and so would be all later ones: then the next factor is
    drawn anew, on both ends alike.

    >>> import torch
    >>> from phalanx.gossip import SimulatedNetwork, Topology, average
    >>> start = torch.stack([torch.ones(5, 6), 3 * torch.ones(5, 6)])
    >>> found = average(start, PowerGossip(), SimulatedNetwork(Topology.ring(2)), rounds=2)
    >>> found.distances[-1] < 1e-9, found.bytes_sent  # 6 numbers, then 5
    (True, tensor([44, 44]))
    """

    rank: int = 1
    """Columns of the factors (r)."""
    iterations: int = 1
    """Half power iterations per round, each with its own messages and its own move."""
    warm_start: bool = True
    """Whether an iteration starts from the last one's factor, or from random numbers."""
    diffusion: float | Literal["optimal"] = 1.0
    """Factor on the moves; "optimal" is the best for uncompressed rounds on the topology."""
    signs: bool = False
    """Whether the fixed factor is rounded to its signs, all of one size: with rank 1 only. Products
    with it are sums and differences; messages are as long as without."""

    def __post_init__(self) -> None:
        require_at_least(1, rank=self.rank)
        require_at_least(1, iterations=self.iterations)
        require_diffusion(self.diffusion)
        if self.signs and self.rank > 1:
            raise ValueError(f"rank must be 1 with signs, got {self.rank}")

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Rows and columns of a node's tensor of this shape; None if it is sent as it is."""
        if len(shape) < 2 or 0 in shape:
            return None
        rows, columns = shape[0], torch.Size(shape[1:]).numel()
        return (rows, columns) if self.rank < min(rows, columns) else None

    def init(self, like: Tensor, network: Network) -> State:
        """Factors of zeros: they are drawn when they are needed first."""
        sizes = self.sizes(tuple(like.shape[1:]))
        if sizes is None or not self.warm_start:
            return ()
        return tuple(like.new_zeros(len(network.edges.peers), size, self.rank) for size in sizes)

    def mix(
        self, tensors: list[Tensor], states: list[State], round: GossipRound
    ) -> tuple[list[Tensor], list[State]]:
        """`iterations` times: products with fixed factors are exchanged, and matrices moved."""
        values = [x.clone(memory_format=torch.contiguous_format) for x in tensors]
        states, matrices, whole = list(states), {}, []
        for place, x in enumerate(values):
            if sizes := self.sizes(tuple(x.shape[1:])):
                matrices[place] = x.view(len(x), *sizes)
            else:
                whole.append(x)
        for iteration in range(self.iterations):
            turn = round.step * self.iterations + iteration
            self._iterate(matrices, states, whole if iteration == 0 else [], turn, round)
        return values, states

    def _iterate(
        self,
        matrices: dict[int, Tensor],
        states: list[State],
        whole: list[Tensor],
        turn: int,
        round: GossipRound,
    ) -> None:
        """One exchange and move; `matrices` and `whole` are changed in place, `states` replaced."""
        network, side = round.network, turn % 2  # 0: the left factors are fixed, 1: the right ones
        edges, factor = network.edges, network.topology.diffusion(self.diffusion)
        fixed, sent = [], []
        for place, matrix in matrices.items():
            basis = self._basis(matrix, states[place], side, place, turn, round)
            fixed.append(basis)
            sent.append(edges.products(matrix if side else matrix.mT, basis))
        sent += [x[edges.owners.to(x.device)] for x in whole]
        come = network.swap(sent)
        for place, basis, own, theirs in zip(matrices, fixed, sent, come, strict=False):
            # The same bits at both ends: x - y is what -(y - x) is.
            learnt = (own - theirs) * per_edge(edges.signs, own)
            moved = basis * per_edge(-factor * edges.weights * edges.signs, basis)
            left, right = (learnt, moved) if side else (moved, learnt)
            edges.add_products(matrices[place], left, right)
            if self.warm_start:
                states[place] = (learnt, basis) if side else (basis, learnt)
        for x, own, theirs in zip(whole, sent[len(fixed) :], come[len(fixed) :], strict=True):
            x += edges.total((theirs - own) * per_edge(factor * edges.weights, own))

    def _basis(
        self,
        matrix: Tensor,
        state: State,
        side: int,
        place: int,
        turn: int,
        round: GossipRound,
    ) -> Factor:
        """Orthonormal factors of all edges, from the last round or drawn; alike on both nodes."""
        pairs = round.network.edges.pairs
        shape = (matrix.shape[1 + side], self.rank)

        def drawn(edge: int) -> Tensor:
            source = round.generator(place, "factor", turn, *pairs[edge])
            return torch.randn(shape, generator=source, dtype=matrix.dtype)

        if not state:
            factor = _stacked(drawn, range(len(pairs)), matrix, shape)
        else:
            factor = state[side]
            empty = (~factor.flatten(1).any(dim=1)).nonzero().flatten()
            if len(empty):
                factor = factor.clone()
                factor[empty] = _stacked(drawn, empty.tolist(), matrix, shape)
        return rounded(factor) if self.signs else orthonormal(factor)


def orthonormal(factors: Factor) -> Factor:
    """An orthonormal basis of the columns of each factor; no factor may be all zeros.

    One after the other, each in memory of its own: kernels round otherwise in a batch, as both ends
    of an edge have other ones, and must come to the same bits.
    """
    # Scaled first: squares of small numbers vanish.
    factors = factors / factors.abs().amax(dim=(1, 2), keepdim=True)
    bases = [_basis_of(factor.clone()) for factor in factors]
    return torch.stack(bases) if bases else factors


def _basis_of(factor: Float[Tensor, "size rank"]) -> Float[Tensor, "size rank"]:
    alone = factor.shape[1] == 1
    basis: Tensor = (
        factor / torch.linalg.vector_norm(factor) if alone else torch.linalg.qr(factor).Q
    )
    return basis


def rounded(factors: Factor) -> Factor:
    """Vectors of length 1 that point as these do in every coordinate; zero points up."""
    size = factors.shape[1] ** -0.5
    return torch.where(factors < 0, -size, size).to(factors)


def _stacked(
    drawn: Callable[[int], Tensor],
    edges: "range | list[int]",
    like: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    rows = [drawn(edge) for edge in edges]
    return torch.stack(rows).to(like.device) if rows else like.new_zeros(0, *shape)
