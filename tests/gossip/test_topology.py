"""Graphs, their weights, and the figures that follow from them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossip.cases import TOPOLOGIES
from phalanx.gossip import Topology


def test_weights_are_symmetric_and_doubly_stochastic(subtests):
    for topology in TOPOLOGIES:
        with subtests.test(f"{topology}"):
            weights = topology.weights
            assert torch.equal(weights, weights.T)
            assert (weights >= 0).all()
            torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)).double())
            neighbours = {edge for edge in topology.edges if weights[edge] > 0}
            assert neighbours == set(topology.edges)
            for node in range(topology.num_nodes):
                others = [other for other in range(topology.num_nodes) if other != node]
                found = tuple(other for other in others if weights[node, other] > 0)
                assert topology.neighbors(node) == found


def test_the_gap_is_that_of_the_matrix_without_its_mean(subtests):
    """Spectral norm of W - 1/n, by another way."""
    for topology in TOPOLOGIES:
        with subtests.test(f"{topology}"):
            left = topology.weights - 1 / topology.num_nodes
            assert topology.spectral_gap == pytest.approx(
                1 - torch.linalg.matrix_norm(left, 2).item()
            )
            assert 0 < topology.spectral_gap <= 1 + 1e-12


@given(num_nodes=st.integers(1, 12), data=st.data())
def test_any_connected_graph(num_nodes, data):
    """A random tree and some more edges; Metropolis weights by their definition."""
    tree = [(data.draw(st.integers(0, node - 1)), node) for node in range(1, num_nodes)]
    some = st.integers(0, num_nodes - 1)
    more = data.draw(st.lists(st.tuples(some, some).filter(lambda edge: edge[0] != edge[1])))
    topology = Topology.from_edges(num_nodes, tree + more)
    degrees = [len(topology.neighbors(node)) for node in range(num_nodes)]
    for low, high in topology.edges:
        wanted = 1 / (1 + max(degrees[low], degrees[high]))
        assert topology.weights[low, high].item() == wanted
    adjacency = topology.weights > 0
    assert Topology.from_adjacency(adjacency.tolist()) == topology
    assert Topology.from_adjacency(adjacency.numpy()) == topology
    assert Topology.from_weights(topology.weights).edges == topology.edges
    if num_nodes > 1:
        scaled = topology.diffusion("optimal")
        values = torch.linalg.eigvalsh(
            torch.eye(num_nodes) * (1 - scaled) + scaled * topology.weights
        )
        assert values[:-1].abs().max() <= 1 - topology.spectral_gap + 1e-9


def test_the_named_graphs_have_their_known_weights():
    ring, torus = Topology.ring(8), Topology.torus(4, 5)
    assert ring.weights[0].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0, 0, 0, 0, 1 / 3])
    assert set(torus.edge_weights) == {1 / 5}
    assert {len(torus.neighbors(node)) for node in range(20)} == {4}
    assert torch.allclose(Topology.complete(6).weights, torch.full((6, 6), 1 / 6).double())
    assert set(Topology.star(6).edge_weights) == {1 / 6}
    assert Topology.exponential(16).neighbors(0) == (1, 2, 4, 8, 12, 14, 15)
    assert Topology.torus(1, 2) == Topology.ring(2) == Topology.complete(2)
    assert Topology.ring(1).edges == ()


def test_the_published_diffusion_of_a_ring_of_8():
    """1.308 in the experiments of PowerGossip; eigenvalues 0.8047 and -1/3."""
    ring = Topology.ring(8)
    assert ring.eigenvalues[1] == pytest.approx((1 + math.sqrt(2)) / 3)
    assert ring.eigenvalues[-1] == pytest.approx(-1 / 3)
    assert ring.optimal_diffusion == pytest.approx(1.308, abs=5e-4)


def test_what_is_no_topology_is_refused(subtests):
    for make, words in [
        (lambda: Topology(0, ()), "num_nodes must be at least 1, got 0"),
        (lambda: Topology(2, ((1, 0),)), "smaller one first, got \\(1, 0\\)"),
        (lambda: Topology(2, ((0, 2),)), "from 0 to 1, the smaller one first, got \\(0, 2\\)"),
        (lambda: Topology.from_edges(2, [(0, 0)]), "pairs of different nodes"),
        (lambda: Topology.from_edges(2, [(0, 1, 1)]), "pairs of nodes, got \\(0, 1, 1\\)"),
        (lambda: Topology(3, ((1, 2), (0, 1))), "edges must be sorted"),
        (lambda: Topology(4, ((0, 1), (2, 3))), "no path from 0 to \\[2, 3\\]"),
        (lambda: Topology(2, ()), "no path from 0 to \\[1\\]"),
        (
            lambda: Topology(3, ((0, 1), (1, 2)), (0.6, 0.6)),
            "at most 1 at every node, got 1.2 at 1",
        ),
        (lambda: Topology(2, ((0, 1),), (-0.5,)), "edge_weights must be above 0, got -0.5"),
        (lambda: Topology(2, ((0, 1),), (0.5, 0.5)), "one per edge, got 2 of 1"),
        (lambda: Topology.torus(0, 3), "rows and columns must be at least 1"),
        (lambda: Topology.from_adjacency([[0, 1], [0, 0]]), "adjacency must be symmetric"),
        (
            lambda: Topology.from_adjacency(np.zeros((2, 3))),
            "square matrix, got the shape \\(2, 3\\)",
        ),
        (lambda: Topology.from_weights([[0.5, 0.5], [0.4, 0.6]]), "weights must be symmetric"),
        (lambda: Topology.from_weights([[1.5, -0.5], [-0.5, 1.5]]), "weights must be at least 0"),
        (
            lambda: Topology.from_weights([[0.5, 0.4], [0.4, 0.6]]),
            "doubly stochastic, got a sum of 0.9",
        ),
        (lambda: Topology.from_weights(torch.eye(2)), "no path from 0 to \\[1\\]"),
        (lambda: Topology.ring(8).diffusion(1.6), "diffusion must be at most 1.5 on this topology"),
    ]:
        with subtests.test(words), pytest.raises(ValueError, match=words):
            make()
