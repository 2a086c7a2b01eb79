"""Edges at some nodes of a graph, and sums and products over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Edge = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Edges:
    """The directed edges from the nodes that are here, all nodes of a graph or one, to neighbours.

    An edge of the graph whose nodes are both here is there twice, once for each. Edges are in the
    order of their own nodes, and at a node in that of the neighbours. Whatever belongs to nodes has
    them as its first axis, in the order of `nodes`; whatever belongs to edges likewise.
    """

    nodes: tuple[int, ...]
    """The nodes that are here."""
    pairs: tuple[Edge, ...]
    """The two nodes of each edge, the smaller one first."""
    owners: Int64[Tensor, " edges"]
    """At which place among `nodes` the own node of each edge stands."""
    peers: Int64[Tensor, " edges"]
    """The neighbour."""
    weights: Float[Tensor, " edges"]
    """Weights of the neighbours' values, float64."""
    signs: Float[Tensor, " edges"]
    """1 where the node's number is the larger one of its edge, -1 elsewhere; float64."""
    groups: tuple[tuple[Tensor, Tensor], ...]
    """Nodes of equal degree: their places `(members,)`, and their edges `(members, degree)`.

    Products are computed for a whole group at once.
    """

    @classmethod
    def of(
        cls,
        num_nodes: int,
        edges: Sequence[Edge],
        weights: Sequence[float],
        nodes: Sequence[int] | None = None,
    ) -> "Edges":
        """The edges at these nodes of a graph of `num_nodes`; by default at all nodes."""
        here = tuple(range(num_nodes)) if nodes is None else tuple(nodes)
        around: dict[int, list[tuple[int, float]]] = {node: [] for node in range(num_nodes)}
        for (low, high), weight in zip(edges, weights, strict=True):
            around[low].append((high, weight))
            around[high].append((low, weight))
        found = [
            (place, node, peer, weight)
            for place, node in enumerate(here)
            for peer, weight in sorted(around[node])
        ]
        owners = torch.tensor([place for place, *_ in found], dtype=torch.int64)
        return cls(
            nodes=here,
            pairs=tuple((min(node, peer), max(node, peer)) for _, node, peer, _ in found),
            owners=owners,
            peers=torch.tensor([peer for _, _, peer, _ in found], dtype=torch.int64),
            weights=torch.tensor([weight for *_, weight in found], dtype=torch.float64),
            signs=torch.tensor(
                [1.0 if node > peer else -1.0 for _, node, peer, _ in found], dtype=torch.float64
            ),
            groups=_by_degree(owners, len(here)),
        )

    def products(
        self,
        matrices: Float[Tensor, "nodes rows columns"],
        factors: Float[Tensor, "edges columns r"],
    ) -> Float[Tensor, "edges rows r"]:
        """For each edge, the matrix of its own node times the factor of the edge.

        A node's matrix is read once, whatever its number of neighbours.
        """
        out = factors.new_empty(len(factors), matrices.shape[1], factors.shape[2])
        for members, edges in self.groups:
            own = self._at(matrices, members)
            beside = self._side_by_side(factors, edges)
            product = (own @ beside).unflatten(2, (edges.shape[1], factors.shape[2]))
            out[edges.flatten()] = product.permute(0, 2, 1, 3).flatten(0, 1)
        return out

    def add_products(
        self,
        matrices: Float[Tensor, "nodes rows columns"],
        left: Float[Tensor, "edges rows r"],
        right: Float[Tensor, "edges columns r"],
    ) -> None:
        """Adds `left right^T` of all its edges to the matrix of each node, in place."""
        for members, edges in self.groups:
            lefts, rights = (self._side_by_side(one, edges) for one in (left, right))
            if len(members) == len(matrices):
                matrices.baddbmm_(lefts, rights.mT)
            else:
                matrices[members] = torch.baddbmm(matrices[members], lefts, rights.mT)

    def total(self, values: Float[Tensor, "edges ..."]) -> Float[Tensor, "nodes ..."]:
        """The sum over its edges at every node."""
        out = values.new_zeros(len(self.nodes), *values.shape[1:])
        return out.index_add_(0, self.owners.to(values.device), values)

    def _at(self, matrices: Tensor, members: Tensor) -> Tensor:
        """The matrices of some nodes; if these are all, without a copy."""
        return matrices if len(members) == len(matrices) else matrices[members]

    def _side_by_side(self, factors: Tensor, edges: Tensor) -> Tensor:
        """`(members, size, degree * r)`: the factors of a node's edges, one beside the other."""
        chosen: Tensor = factors[edges.flatten()].unflatten(0, edges.shape)
        return chosen.permute(0, 2, 1, 3).flatten(2)


def as_rows(values: Tensor) -> Float[Tensor, "nodes dim"]:
    """The values of each node, or edge, as one row."""
    return values.unsqueeze(-1).flatten(1)


def per_edge(values: Tensor, like: Tensor) -> Tensor:
    """One number per edge (or node), in the form in which it multiplies values like these."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))


def _by_degree(owners: Tensor, num_nodes: int) -> tuple[tuple[Tensor, Tensor], ...]:
    degrees = torch.bincount(owners, minlength=num_nodes)
    groups = []
    for degree in degrees.unique().tolist():
        if not degree:
            continue
        members = (degrees == degree).nonzero().flatten()
        edges = (degrees[owners] == degree).nonzero().view(len(members), degree)
        groups.append((members, edges))
    return tuple(groups)
