"""Vertex covers of small graphs, by bounded search over sets of bits."""

from jaxtyping import Bool
from torch import Tensor


def bit_sets(edges: Bool[Tensor, "vertices vertices"]) -> tuple[list[int], int]:
    """For every vertex the set of its neighbours, bit i for vertex i; and the set of all."""
    rows = edges.tolist()
    sets = [sum(1 << i for i, joined in enumerate(row) if joined) for row in rows]
    return sets, (1 << len(rows)) - 1


def coverable(edges: list[int], alive: int, budget: int) -> bool:
    """Whether so few vertices touch every edge among those alive.

    Equivalently: whether all but so many vertices are pairwise unconnected. No vertex is joined to
    itself.

    Cost: exponential in the budget at worst.

    >>> import torch
    >>> ring = torch.tensor([[False, True, True], [True, False, True], [True, True, False]])
    >>> [coverable(*bit_sets(ring), budget) for budget in (1, 2)]
    [False, True]
    """
    while budget >= 0:
        degrees = {vertex: (edges[vertex] & alive).bit_count() for vertex in _members(alive)}
        degrees = {vertex: degree for vertex, degree in degrees.items() if degree}
        if not degrees:
            return True
        busiest = max(degrees, key=degrees.__getitem__)
        if sum(degrees.values()) > 2 * budget * degrees[busiest]:
            return False
        leaf = next((vertex for vertex, degree in degrees.items() if degree == 1), None)
        if leaf is not None:  # its only partner covers at least as much as it does
            alive &= ~(edges[leaf] & alive)
        elif degrees[busiest] > 2:
            around = edges[busiest] & alive
            if coverable(edges, alive & ~around, budget - around.bit_count()):
                return True
            alive &= ~(1 << busiest)
        else:  # rings alone are left, where one vertex is as good as another
            alive &= ~(1 << busiest)
        budget -= 1
    return False


def _members(vertices: int) -> list[int]:
    return [vertex for vertex in range(vertices.bit_length()) if vertices >> vertex & 1]
