"""Against slow and obvious code, the papers' guarantees, and bytes counted by hand."""

import pytest
import torch

from gossip import reference
from gossip.cases import CROOKED, TOPOLOGIES, rounds, tensors
from phalanx.compression import QSGD, ScaledSign, TopK
from phalanx.gossip import (
    DPSGD,
    AllReduceAveraging,
    ChocoSGD,
    DeepSqueeze,
    Moniqua,
    PowerGossip,
    SimulatedNetwork,
    Topology,
    average,
    mix,
    spread,
)


def start(num_nodes, *shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(num_nodes, *shape, generator=source, dtype=torch.float64)


def run(algorithm, topology, value, steps):
    return rounds(SimulatedNetwork(topology), algorithm, {"x": value}, steps)[0]["x"]


def test_d_psgd_is_the_product_with_the_matrix(subtests):
    for topology in [Topology.ring(5), CROOKED]:
        for diffusion in [1.0, 0.3, "optimal"]:
            with subtests.test(f"{topology}, {diffusion}"):
                value, weights = start(topology.num_nodes, 3, 2), topology.weights
                rows = list(value)
                for _ in range(3):
                    rows = reference.d_psgd(rows, weights, topology.diffusion(diffusion))
                torch.testing.assert_close(
                    run(DPSGD(diffusion), topology, value, 3), torch.stack(rows)
                )


@pytest.mark.parametrize("kind", [ChocoSGD, DeepSqueeze])
def test_sums_of_copies_are_as_good_as_copies(kind, subtests):
    for topology in [Topology.ring(5), CROOKED]:
        for compressor in [ScaledSign(), TopK(ratio=0.3)]:
            with subtests.test(f"{topology}, {compressor}"):
                slow = reference.Choco if kind is ChocoSGD else reference.Squeeze
                value = start(topology.num_nodes, 4, 3)
                once = lambda x, one=compressor: one.decode(one.encode(x))  # noqa: E731
                obvious = slow(list(value), topology.weights, once, 0.3)
                for _ in range(5):
                    obvious.round()
                torch.testing.assert_close(
                    run(kind(compressor, 0.3), topology, value, 5), torch.stack(obvious.rows)
                )


def test_power_gossip_is_one_pair_of_factors_an_edge(subtests):
    for topology in [Topology.ring(5), CROOKED]:
        for rank, signs in [(1, False), (2, False), (1, True)]:
            with subtests.test(f"{topology}, {rank}, {signs}"):
                value = start(topology.num_nodes, 6, 5)
                slow = reference.Power(
                    list(value), topology, rank, 0.8, seed=3, name="x", signs=signs
                )
                for _ in range(6):
                    slow.round()
                found = run(PowerGossip(rank=rank, diffusion=0.8, signs=signs), topology, value, 6)
                torch.testing.assert_close(found, torch.stack(slow.rows))


def test_uncompressed_rounds_contract_at_the_rate_of_the_gap(subtests):
    """In every round, and by the optimal factor no less."""
    for topology in TOPOLOGIES:
        with subtests.test(f"{topology}"):
            value, network = start(topology.num_nodes, 20), SimulatedNetwork(topology)
            for diffusion, rate in ((1.0, 1 - topology.spectral_gap), ("optimal", None)):
                if rate is None:
                    others = [
                        1 - topology.optimal_diffusion * (1 - one) for one in topology.eigenvalues
                    ]
                    rate = max(abs(one) for one in others[1:])
                found = average(value, DPSGD(diffusion), network, rounds=12)
                for before, after in zip(found.distances, found.distances[1:], strict=False):
                    assert after**0.5 <= rate * before**0.5 + 1e-14
            assert found.distances[-1] ** 0.5 <= (1 - topology.spectral_gap) ** 12 + 1e-13


def test_the_slowest_direction_contracts_at_exactly_that_rate():
    ring = Topology.ring(8)
    slowest = torch.linalg.eigh(ring.weights).eigenvectors[:, -2]
    found = average(slowest, DPSGD(), SimulatedNetwork(ring), rounds=10)
    assert found.distances[-1] == pytest.approx((1 - ring.spectral_gap) ** 20)


@pytest.mark.parametrize("kind", [ChocoSGD, DeepSqueeze])
def test_nothing_compressed_and_a_full_step_is_d_psgd(kind, subtests):
    for topology in [Topology.ring(5), CROOKED]:
        with subtests.test(f"{topology}"):
            value = start(topology.num_nodes, 4, 3)
            everything = kind(TopK(ratio=1.0), consensus_rate=1.0)
            torch.testing.assert_close(
                run(everything, topology, value, 6), run(DPSGD(), topology, value, 6)
            )


def test_power_gossip_of_full_rank_is_d_psgd(subtests):
    for shape in [(5, 5), (3, 9), (8, 2, 2)]:
        with subtests.test(f"{shape}"):
            value, topology = start(6, *shape), Topology.torus(2, 3)
            full = PowerGossip(rank=min(shape[0], value[0, 0].numel()))
            torch.testing.assert_close(
                run(full, topology, value, 5), run(DPSGD(), topology, value, 5)
            )


def test_a_difference_of_low_rank_shrinks_as_if_uncompressed_from_the_second_iteration(subtests):
    """Two nodes, weight 1/2: by `1 - 2 * diffusion / 2` in each."""
    for rank in [1, 3]:
        with subtests.test(f"{rank}"):
            pair = start(2, 9, rank) @ start(2, rank, 7, seed=1)
            pair[1] = pair[0] + start(1, 9, rank, seed=2)[0] @ start(1, rank, 7, seed=3)[0]
            found = average(
                pair,
                PowerGossip(rank=rank, diffusion=0.4),
                SimulatedNetwork(Topology.ring(2)),
                rounds=6,
            )
            for before, after in zip(found.distances[1:], found.distances[2:], strict=False):
                assert after / before == pytest.approx(0.6**2, rel=1e-6)


def test_many_iterations_are_power_iterations(subtests):
    """If nodes hardly move, the factors are those of the best approximation of the difference."""
    for rank in [1, 2]:
        with subtests.test(f"{rank}"):
            best, _, best_right = torch.linalg.svd(start(1, 7, 7)[0])
            values = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.0]).double()
            pair = torch.stack([torch.zeros(7, 7).double(), best * values @ best_right])
            tiny = PowerGossip(rank=rank, iterations=60, diffusion=1e-9)
            mixed = mix(tiny, SimulatedNetwork(Topology.ring(2)), {"x": pair})
            left, right = (one[0] for one in mixed.memory.states["x"])
            values[rank:] = 0
            torch.testing.assert_close(
                left @ right.T, best * values @ best_right, rtol=1e-6, atol=1e-6
            )


def test_both_ends_of_an_edge_hold_the_same_bits(subtests):
    for topology in [Topology.ring(5), CROOKED]:
        for algorithm in [PowerGossip(), PowerGossip(rank=3, iterations=2)]:
            with subtests.test(f"{topology}, {algorithm}"):
                network = SimulatedNetwork(topology)
                values = {"x": start(topology.num_nodes, 6, 5).float()}
                _, memory, _ = rounds(network, algorithm, values, 7)
                seen = {}
                for end, edge in enumerate(network.edges.pairs):
                    bits = [factor[end] for factor in memory.states["x"]]
                    for mine, theirs in zip(bits, seen.setdefault(edge, bits), strict=True):
                        assert torch.equal(mine, theirs)
                        assert mine.any()


def test_nodes_that_were_equal_once_are_averaged_when_they_differ_again():
    """Factors of zeros would stay zeros for ever."""
    network, algorithm = SimulatedNetwork(Topology.ring(4)), PowerGossip()
    value = {"x": torch.ones(4, 6, 5)}
    value, memory, _ = rounds(network, algorithm, value, 3)
    apart = start(4, 6, 5).float()
    found, _, _ = rounds(network, algorithm, {"x": apart}, 60, memory)
    assert spread(found["x"]) < 0.01 * spread(apart)


def test_power_gossip_needs_no_tuning(subtests):
    for topology in [
        Topology.ring(8),
        Topology.torus(2, 4),
        Topology.star(8),
        Topology.complete(8),
    ]:
        with subtests.test(f"{topology}"):
            found = average(
                start(8, 10, 10).float(), PowerGossip(), SimulatedNetwork(topology), rounds=100
            )
            assert found.distances[-1] < 0.05


def test_consensus_of_noise_on_a_ring_of_8(subtests):
    """100 x 100 Gaussian matrices."""
    for algorithm, at, below in [
        (DPSGD("optimal"), 30, 1e-8),
        (PowerGossip(), 100, 0.4),
        (PowerGossip(signs=True), 100, 0.5),
        (PowerGossip(rank=2), 100, 0.17),
    ]:
        with subtests.test(f"{algorithm}, {at}, {below}"):
            found = average(
                start(8, 100, 100).float(), algorithm, SimulatedNetwork(Topology.ring(8)), rounds=at
            )
            assert below / 2 < found.distances[-1] < below or algorithm == DPSGD("optimal")
            assert found.distances[-1] < below


def test_sparse_choco_with_too_large_a_step_diverges():
    value, ring = start(8, 20, 20).float(), SimulatedNetwork(Topology.ring(8))
    small = average(value, ChocoSGD(TopK(ratio=0.02), 0.05), ring, rounds=50)
    large = average(value, ChocoSGD(TopK(ratio=0.02), 0.8), ring, rounds=50)
    assert small.distances[-1] < 0.6
    assert large.distances[-1] > 1


def test_choco_contracts_as_its_theorem_says():
    """Koloskova, Stich and Jaggi 2019, theorem 2; top-k is deterministic."""
    topology, compressor = Topology.ring(5), TopK(ratio=0.5)
    value = start(5, 40)
    rate = ChocoSGD(compressor).safe_rate(topology, 40)
    assert 0 < rate < 0.1
    found = average(value, ChocoSGD(compressor, rate), SimulatedNetwork(topology), rounds=60)
    first = spread(value) + value.square().sum().item()
    fall = 1 - topology.spectral_gap**2 * compressor.contraction(40) / 82
    for step, distance in enumerate(found.distances):
        assert distance * spread(value) <= fall**step * first
    assert ChocoSGD(QSGD()).safe_rate(topology, 40) is None


def test_bytes_by_hand():
    """A 6 x 5 matrix, a kernel that is a 4 x 6 matrix, a vector of 7; degrees of a star."""
    values = {"m": start(4, 6, 5), "k": start(4, 4, 3, 2), "v": start(4, 7)}
    values = {name: x.float() for name, x in values.items()}
    network, neighbours = SimulatedNetwork(Topology.star(4)), torch.tensor([3, 1, 1, 1])

    def sent(algorithm, steps=1):
        return rounds(network, algorithm, values, steps)[2]

    assert torch.equal(sent(DPSGD()), 4 * (30 + 24 + 7) * neighbours)
    even, odd = 5 + 6, 6 + 4  # columns, then rows
    for rank in (1, 2):
        one = PowerGossip(rank=rank)
        assert torch.equal(sent(one), 4 * (rank * even + 7) * neighbours)
        assert torch.equal(sent(one, 2), 4 * (rank * (even + odd) + 14) * neighbours)
    three = PowerGossip(iterations=3)  # the vector once a round
    assert torch.equal(sent(three), 4 * (2 * even + odd + 7) * neighbours)
    signs = [4 + (x[0].numel() + 7) // 8 for x in values.values()]
    assert torch.equal(sent(ChocoSGD()), sum(signs) * neighbours)
    assert torch.equal(sent(DeepSqueeze()), sum(signs) * neighbours)
    for bits in (2, 3, 8):  # one stream, without a scale
        assert torch.equal(sent(Moniqua(bits=bits)), (61 * bits + 7) // 8 * neighbours)
    assert torch.equal(sent(PowerGossip(signs=True), 2), sent(PowerGossip(), 2))
    elias = QSGD(coding="elias-sparse")
    assert torch.equal(
        sent(ChocoSGD(elias)),
        (_elias_bytes(elias, values) + 8 * len(values) + 8) * neighbours,
    )
    assert sent(AllReduceAveraging()).tolist() == [4 * 61 * 6 // 4] * 4


def _elias_bytes(compressor, values):
    """Messages of the first round, whose differences are the tensors, drawn as the nodes do."""
    from phalanx.randomness import generator

    return torch.tensor(
        [
            sum(
                compressor.encode(x[node], generator(3, "gossip", 0, name, node)).num_bytes
                for name, x in values.items()
            )
            for node in range(4)
        ]
    )


def test_a_published_ratio_for_layers_of_128():
    """Rank 1 of 128 x 128 layers: 128 times fewer numbers than the layer has."""
    value = {"w": torch.zeros(8, 128, 128)}
    network = SimulatedNetwork(Topology.ring(8))
    whole, thin = (mix(one, network, value).bytes_sent for one in (DPSGD(), PowerGossip()))
    assert (whole // thin).unique().tolist() == [128]


def test_tensors_of_a_round_do_not_share_their_factors():
    values = tensors(5)
    values["again"] = values["matrix"].clone()
    _, memory, _ = rounds(SimulatedNetwork(Topology.ring(5)), PowerGossip(), values, 1)
    one, other = (memory.states[name][0] for name in ("matrix", "again"))
    assert not torch.equal(one, other)
