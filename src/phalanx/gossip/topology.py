"""Communication topologies and their mixing matrices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.gossip.edges import Edges

_SLACK = 1e-9  # by which rows of weights may miss 1, and weights their mirror images

Edge = tuple[int, int]


@dataclass(frozen=True)
class Topology:
    """A connected graph of nodes, and a weight for each edge: a mixing matrix.

    The matrix is symmetric and doubly stochastic by construction: what the edges of a node leave of
    1 is the weight of its own values. Weights are Metropolis weights, `1 / (1 + max(degrees))`,
    unless given: 1/3 on a ring, 1/5 on a torus, `1 / num_nodes` on a star and a complete graph.

    Source: Xiao, Boyd, "Fast Linear Iterations for Distributed Averaging", Systems & Control
    Letters 2004; Metropolis weights: Xiao, Boyd, Kim, "Distributed Average Consensus with
    Least-Mean-Square Deviation", 2007.

    >>> ring = Topology.ring(8)
    >>> ring.neighbors(0), round(ring.spectral_gap, 4), round(ring.optimal_diffusion, 4)
    ((1, 7), 0.1953, 1.3084)
    """

    num_nodes: int
    """Nodes, numbered from 0 (n)."""
    edges: tuple[Edge, ...]
    """Pairs of neighbours, the smaller number first, each pair once, sorted; see `from_edges`."""
    edge_weights: tuple[float, ...] = ()
    """One weight per edge, above 0; those of a node add up to at most 1. Metropolis if empty."""

    def __post_init__(self) -> None:
        require_at_least(1, num_nodes=self.num_nodes)
        for low, high in self.edges:
            if not 0 <= low < high < self.num_nodes:
                raise ValueError(
                    f"edges must be pairs of different nodes from 0 to {self.num_nodes - 1}, the "
                    f"smaller one first, got {(low, high)}"
                )
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges must be sorted and each there once, got {self.edges}")
        if not self.edge_weights:
            object.__setattr__(self, "edge_weights", self._metropolis())
        if len(self.edge_weights) != len(self.edges):
            raise ValueError(
                f"edge_weights must be one per edge, got {len(self.edge_weights)} of "
                f"{len(self.edges)}"
            )
        if any(not (isfinite(one) and one > 0) for one in self.edge_weights):
            raise ValueError(f"edge_weights must be above 0, got {min(self.edge_weights)}")
        totals = [0.0] * self.num_nodes
        for (low, high), weight in zip(self.edges, self.edge_weights, strict=True):
            totals[low] += weight
            totals[high] += weight
        if max(totals) > 1 + _SLACK:
            node = totals.index(max(totals))
            raise ValueError(
                f"edge_weights must add up to at most 1 at every node, got {totals[node]} at {node}"
            )
        if unreached := self._unreached():
            raise ValueError(
                f"edges must connect all nodes, got no path from 0 to {sorted(unreached)}"
            )

    @classmethod
    def from_edges(cls, num_nodes: int, edges: Iterable[Sequence[int]]) -> "Topology":
        """A graph of your own: pairs in any order and direction, as often as you like.

        >>> Topology.from_edges(3, [(1, 0), (1, 2), (0, 1)]).edges
        ((0, 1), (1, 2))
        """
        pairs = [tuple(int(end) for end in edge) for edge in edges]
        if wrong := [pair for pair in pairs if len(pair) != 2]:
            raise ValueError(f"edges must be pairs of nodes, got {wrong[0]}")
        return cls(num_nodes, tuple(sorted({(min(pair), max(pair)) for pair in pairs})))

    @classmethod
    def from_adjacency(cls, adjacency: Any) -> "Topology":
        """A graph by its matrix: `adjacency[i][j]` is true where `i` and `j` are neighbours.

        Args:
            adjacency: `(nodes, nodes)`, symmetric; a tensor, an array or lists. The diagonal does
                not matter.
        """
        matrix = _square(adjacency, "adjacency") != 0
        if not torch.equal(matrix, matrix.T):
            raise ValueError(f"adjacency must be symmetric, got {_odd_pair(matrix != matrix.T)}")
        return cls.from_edges(len(matrix), matrix.triu(1).nonzero().tolist())

    @classmethod
    def from_weights(cls, weights: Any) -> "Topology":
        """A graph by its mixing matrix.

        Args:
            weights: `(nodes, nodes)`, symmetric, not negative, its rows adding up to 1; a tensor,
                an array or lists. Nodes with a weight above 0 are neighbours.
        """
        matrix = _square(weights, "weights")
        off = (matrix - matrix.T).abs() > _SLACK
        if bool(off.any()):
            raise ValueError(f"weights must be symmetric, got {_odd_pair(off)}")
        if bool((matrix < 0).any()) or not bool(matrix.isfinite().all()):
            raise ValueError(f"weights must be at least 0, got {matrix.min().item()}")
        sums = matrix.sum(dim=1)
        if bool(((sums - 1).abs() > _SLACK).any()):
            worst = int((sums - 1).abs().argmax())
            raise ValueError(
                f"weights must be doubly stochastic, got a sum of {sums[worst].item()} in row "
                f"{worst}"
            )
        edges = [(int(low), int(high)) for low, high in matrix.triu(1).nonzero().tolist()]
        return cls(len(matrix), tuple(edges), tuple(matrix[edge].item() for edge in edges))

    @classmethod
    def ring(cls, num_nodes: int) -> "Topology":
        """Every node has the one before and the one after it as neighbours."""
        return cls._circulant(num_nodes, [1])

    @classmethod
    def torus(cls, rows: int, columns: int) -> "Topology":
        """A grid whose borders are joined: neighbours above, below, left and right."""
        if rows < 1 or columns < 1:
            raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
        edges = [
            (row * columns + column, other)
            for row in range(rows)
            for column in range(columns)
            for other in (
                (row + 1) % rows * columns + column,
                row * columns + (column + 1) % columns,
            )
        ]
        return cls.from_edges(rows * columns, [edge for edge in edges if edge[0] != edge[1]])

    @classmethod
    def exponential(cls, num_nodes: int) -> "Topology":
        """Neighbours are 1, 2, 4, 8, ... places away, to both sides: about `2 log2(n)` of them."""
        return cls._circulant(num_nodes, [2**power for power in range(num_nodes.bit_length())])

    @classmethod
    def star(cls, num_nodes: int) -> "Topology":
        """Node 0 is everybody's neighbour, and nobody else is anybody's."""
        return cls.from_edges(num_nodes, [(0, node) for node in range(1, num_nodes)])

    @classmethod
    def complete(cls, num_nodes: int) -> "Topology":
        """Everybody is everybody's neighbour: one round without compression is the mean."""
        return cls._circulant(num_nodes, range(1, num_nodes))

    @classmethod
    def _circulant(cls, num_nodes: int, offsets: Iterable[int]) -> "Topology":
        """Neighbours that are so many places away, around the circle."""
        reach = [offset for offset in offsets if offset < num_nodes]
        edges = [(node, (node + by) % num_nodes) for node in range(num_nodes) for by in reach]
        return cls.from_edges(num_nodes, edges)

    def neighbors(self, node: int) -> tuple[int, ...]:
        """The neighbours of a node, in order."""
        pairs = [edge for edge in self.edges if node in edge]
        return tuple(sorted(low + high - node for low, high in pairs))

    @cached_property
    def weights(self) -> Float[Tensor, "nodes nodes"]:
        """The mixing matrix (W), float64."""
        matrix = torch.zeros(self.num_nodes, self.num_nodes, dtype=torch.float64)
        for (low, high), weight in zip(self.edges, self.edge_weights, strict=True):
            matrix[low, high] = matrix[high, low] = weight
        return matrix + torch.diag(1 - matrix.sum(dim=1))

    @cached_property
    def eigenvalues(self) -> tuple[float, ...]:
        """Those of the mixing matrix, the largest first; that one is 1."""
        return tuple(torch.linalg.eigvalsh(self.weights).flip(0).tolist())

    @property
    def spectral_gap(self) -> float:
        """One minus the second largest magnitude of an eigenvalue.

        Each round without compression multiplies the distance to the mean by at most one minus it.
        """
        return 1 - max((abs(one) for one in self.eigenvalues[1:]), default=0.0)

    @property
    def optimal_diffusion(self) -> float:
        """The factor on the step to the neighbours' mean that contracts most.

        `2 / ((1 - lambda_2) + (1 - lambda_n))`; 1 with one node.
        """
        if self.num_nodes == 1:
            return 1.0
        return 2 / (2 - self.eigenvalues[1] - self.eigenvalues[-1])

    def diffusion(self, factor: float | Literal["optimal"]) -> float:
        """The factor on the step to the neighbours' mean, if values do not grow under it.

        Raises:
            ValueError: if a round without compression would move some values apart.
        """
        if factor == "optimal":
            return self.optimal_diffusion
        steepest = 1 - self.eigenvalues[-1]
        if factor * steepest > 2 + _SLACK:
            raise ValueError(
                f"diffusion must be at most {2 / steepest:.4g} on this topology, got {factor}"
            )
        return factor

    def edges_at(self, nodes: Sequence[int] | None = None) -> Edges:
        """The edges at these nodes; by default at all."""
        return Edges.of(self.num_nodes, self.edges, self.edge_weights, nodes)

    def _metropolis(self) -> tuple[float, ...]:
        degrees = [0] * self.num_nodes
        for edge in self.edges:
            for node in edge:
                degrees[node] += 1
        return tuple(1 / (1 + max(degrees[low], degrees[high])) for low, high in self.edges)

    def _unreached(self) -> set[int]:
        """Nodes to which no path leads from node 0."""
        around: dict[int, list[int]] = {node: [] for node in range(self.num_nodes)}
        for low, high in self.edges:
            around[low].append(high)
            around[high].append(low)
        unreached, waiting = set(range(1, self.num_nodes)), [0]
        while waiting:
            found = unreached.intersection(around[waiting.pop()])
            unreached -= found
            waiting += found
        return unreached


def _square(matrix: Any, name: str) -> Tensor:
    """The matrix in float64, if it is one."""
    found = torch.as_tensor(matrix, dtype=torch.float64)
    if found.ndim != 2 or len(found) != found.shape[1] or not len(found):
        raise ValueError(f"{name} must be a square matrix, got the shape {tuple(found.shape)}")
    return found


def _odd_pair(off: Tensor) -> str:
    """The first pair of nodes for which it does not hold."""
    low, high = off.nonzero()[0].tolist()
    return f"different values at ({low}, {high}) and ({high}, {low})"
