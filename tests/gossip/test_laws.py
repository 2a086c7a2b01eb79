"""What every gossip algorithm promises."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.cases import ALGORITHMS, CENTRAL, CROOKED, MORE, rounds, tensors
from laws import by_class, concrete
from phalanx import gossip
from phalanx.compression import QSGD, ErrorFeedback, RandomBlock, TensorStates
from phalanx.errors import NotFiniteError
from phalanx.gossip import (
    DPSGD,
    AllReduceAveraging,
    ChocoSGD,
    DeepSqueeze,
    Gossip,
    Moniqua,
    PowerGossip,
    SimulatedNetwork,
    Topology,
    average,
    mix,
)
from phalanx.gossip.power_gossip import orthonormal

RING = Topology.ring(5)
every = pytest.mark.parametrize(
    "algorithms",
    [
        *(pytest.param(group, id=name) for name, group in by_class(CENTRAL).items()),
        *(
            pytest.param(group, id=f"more {name}", marks=pytest.mark.slow)
            for name, group in by_class(MORE).items()
        ),
    ],
)


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def test_every_algorithm_of_the_room_is_among_the_cases():
    assert set(concrete(gossip, Gossip)) == {type(case) for case in ALGORITHMS}


@every
def test_the_mean_stays_in_every_round(algorithms, subtests):
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            network, values, memory = SimulatedNetwork(CROOKED), tensors(6), None
            before = {name: x.double().mean(dim=0) for name, x in values.items()}
            for _ in range(3):
                values, memory, _ = rounds(network, algorithm, values, 1, memory)
                for name, x in values.items():
                    torch.testing.assert_close(
                        x.double().mean(dim=0), before[name], rtol=1e-5, atol=1e-6
                    )


@every
def test_nodes_agree_in_the_end(algorithms, subtests):
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            start = tensors(5)["matrix"]
            found = average(start, algorithm, SimulatedNetwork(RING), rounds=150, tolerance=0.1)
            assert found.distances[-1] <= 0.1


@every
def test_nothing_that_is_given_changes_and_all_comes_again(algorithms, subtests):
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            network, values = SimulatedNetwork(RING), tensors(5)
            kept = {name: x.clone() for name, x in values.items()}
            memory = rounds(network, algorithm, values, 2)[1]
            states = {name: [x.clone() for x in state] for name, state in memory.states.items()}
            torch.manual_seed(1)
            first = mix(algorithm, network, values, memory, seed=3)
            drawn = torch.rand(1)
            second = mix(algorithm, network, values, memory, seed=3)
            torch.manual_seed(1)
            assert torch.equal(torch.rand(1), drawn)  # the global generator was left alone
            for name, x in values.items():
                assert same(x, kept[name])
                assert same(first.values[name], second.values[name])
                pairs = zip(memory.states.get(name, ()), states.get(name, ()), strict=True)
                assert all(same(one, other) for one, other in pairs)
            assert (first.memory.step, first.bytes_sent.tolist()) == (3, second.bytes_sent.tolist())


@every
def test_dtypes_and_shapes_are_kept(algorithms, subtests):
    for algorithm in algorithms:
        for dtype in [torch.bfloat16, torch.float64]:
            with subtests.test(f"{algorithm}, {dtype}"):
                values = tensors(5, dtype=dtype)
                values["other"] = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
                values["strided"] = values["matrix"].transpose(1, 2)
                mixed, _, _ = rounds(SimulatedNetwork(RING), algorithm, values, 2)
                for name, x in values.items():
                    assert (mixed[name].shape, mixed[name].dtype) == (x.shape, x.dtype)
                    assert mixed[name].isfinite().all()


@every
def test_a_run_goes_on_from_a_checkpoint_in_the_same_bits(algorithms, tmp_path, subtests):
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            network = SimulatedNetwork(RING)
            straight = rounds(network, algorithm, tensors(5), 5)
            half = rounds(network, algorithm, tensors(5), 3)
            torch.save(half[1].state_dict(), tmp_path / "memory.pt")
            memory = TensorStates.from_state_dict(
                torch.load(tmp_path / "memory.pt", weights_only=True)
            )
            rest = rounds(network, algorithm, half[0], 2, memory)
            assert all(same(x, rest[0][name]) for name, x in straight[0].items())


@every
def test_a_tensor_by_itself_is_mixed_as_among_others(algorithms, subtests):
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            network, values = SimulatedNetwork(RING), tensors(5)
            together = rounds(network, algorithm, values, 3)[0]
            alone = rounds(network, algorithm, {"matrix": values["matrix"]}, 3)[0]
            assert same(alone["matrix"], together["matrix"])


@every
def test_a_node_alone_keeps_what_it_has(algorithms, subtests):
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            values = tensors(1)
            found, _, sent = rounds(SimulatedNetwork(Topology.ring(1)), algorithm, values, 2)
            assert sent.tolist() == [0]
            assert all(torch.equal(x, found[name]) for name, x in values.items())


@every
def test_equal_nodes_stay_equal(algorithms, subtests):
    """And so do those that all hold zeros: no division by their norm."""
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            if getattr(algorithm, "compressor", None) == RandomBlock(
                0.3, rescale=False, shared=False
            ):
                continue  # every node tells something else
            for fill in (0.0, 2.5):
                values = {"matrix": torch.full((5, 6, 7), fill), "bias": torch.full((5, 3), fill)}
                found, _, _ = rounds(SimulatedNetwork(RING), algorithm, values, 3)
                for name, x in values.items():
                    torch.testing.assert_close(found[name], x, rtol=1e-6, atol=1e-6)


@every
def test_what_is_not_finite_stops_the_round_and_is_named(algorithms, subtests):
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            values = tensors(5)
            values["matrix"][3, 0, 0], values["bias"][1, 2] = torch.nan, torch.inf
            with pytest.raises(NotFiniteError, match=r"on nodes \[1, 3\]") as found:
                mix(algorithm, SimulatedNetwork(RING), values)
            assert found.value.workers == [1, 3]


@every
def test_it_is_a_value(algorithms, subtests):
    for algorithm in algorithms:
        with subtests.test(f"{algorithm}"):
            assert pickle.loads(pickle.dumps(algorithm)) == algorithm


def test_bad_arguments_are_refused(subtests):
    for make, words in [
        (lambda: DPSGD(0.0), 'diffusion must be above 0, or "optimal", got 0.0'),
        (lambda: PowerGossip(rank=0), "rank must be at least 1, got 0"),
        (lambda: PowerGossip(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: PowerGossip(rank=2, signs=True), "rank must be 1 with signs, got 2"),
        (lambda: ChocoSGD(consensus_rate=1.5), "consensus_rate must be above 0 and at most 1"),
        (lambda: DeepSqueeze(consensus_rate=0.0), "consensus_rate must be above 0 and at most 1"),
    ]:
        with subtests.test(words), pytest.raises(ValueError, match=words):
            make()


def test_compressors_that_do_not_fit_are_refused():
    for made in (ChocoSGD, DeepSqueeze):
        with pytest.raises(ValueError, match="without error feedback"):
            made(ErrorFeedback())
    with pytest.raises(ValueError, match="must be a biased one"):
        DeepSqueeze(QSGD())


def test_tensors_that_do_not_fit_are_refused(subtests):
    for values, words in [
        ({}, "at least one, got none"),
        ({"w": torch.zeros(4, 2)}, r"5 nodes as their first axis, got the shape \(4, 2\) for w"),
        ({"w": torch.tensor(1.0)}, r"got the shape \(\) for w"),
        ({"w": torch.zeros(5, dtype=torch.int64)}, "of floating point, got torch.int64 for w"),
    ]:
        with subtests.test(words), pytest.raises(ValueError, match=words):
            mix(DPSGD(), SimulatedNetwork(RING), values)


def test_the_number_of_rounds_is_checked():
    with pytest.raises(ValueError, match="rounds must be at least 0, got -1"):
        average(torch.ones(5), DPSGD(), SimulatedNetwork(RING), rounds=-1)


@settings(max_examples=15)
@given(
    num_nodes=st.integers(1, 9),
    seed=st.integers(0, 99),
    algorithm=st.sampled_from(ALGORITHMS),
    shape=st.sampled_from([(), (3,), (4, 5), (5, 2, 3), (1, 6)]),
)
def test_any_graph_keeps_the_mean_and_counts_bytes_for_every_neighbour(
    num_nodes, seed, algorithm, shape
):
    source = torch.Generator().manual_seed(seed)
    edges = [(int(torch.randint(node, (), generator=source)), node) for node in range(1, num_nodes)]
    topology = Topology.from_edges(num_nodes, [*edges, *edges[:2]])
    values = {"x": torch.randn(num_nodes, *shape, generator=source)}
    found, _, sent = rounds(SimulatedNetwork(topology), algorithm, values, 2)
    torch.testing.assert_close(found["x"].mean(dim=0), values["x"].mean(dim=0), atol=1e-5, rtol=0)
    if isinstance(algorithm, AllReduceAveraging):
        return
    degrees = torch.tensor([len(topology.neighbors(node)) for node in range(num_nodes)])
    fixed = not isinstance(algorithm, ChocoSGD) or algorithm.compressor.fixed_size
    if fixed:
        assert torch.equal(sent * degrees.max().clamp(min=1), degrees * sent.max())
    assert ((sent > 0) == (degrees > 0)).all()


def test_a_factor_has_one_basis_whatever_stands_beside_it(subtests):
    """Both ends of an edge have other batches of factors, and must come to the same bits."""
    source = torch.Generator().manual_seed(0)
    for size, rank in [(3, 2), (17, 2), (33, 4), (1000, 1), (1001, 3), (70_001, 1)]:
        with subtests.test(size=size, rank=rank):
            factors = torch.randn(5, size, rank, generator=source)
            together = orthonormal(factors)
            for place in range(5):
                assert orthonormal(factors[place : place + 1]).equal(together[place][None])
                assert orthonormal(factors[place:]).equal(together[place:])
            torch.testing.assert_close(
                together.mT @ together, torch.eye(rank).expand(5, -1, -1), rtol=1e-4, atol=1e-4
            )
            for exponent in (-100, 100):
                assert orthonormal(factors * 2.0**exponent).equal(together)


def test_a_power_of_two_changes_nothing_but_the_scale(subtests):
    absolute = (Moniqua, DeepSqueeze)  # a bound, and a half of float16, are lengths
    for algorithm in ALGORITHMS:
        start = tensors(4)
        if isinstance(algorithm, absolute):
            continue

        def mixed(scale, algorithm=algorithm, start=start):
            network = SimulatedNetwork(Topology.ring(4))
            scaled = {name: x * scale for name, x in start.items()}
            return rounds(network, algorithm, scaled, 3)[0]

        wanted = mixed(1.0)
        for exponent in (-90, -60, 60, 100):
            with subtests.test(f"{algorithm}, {exponent}"):
                for name, x in mixed(2.0**exponent).items():
                    torch.testing.assert_close(
                        x * 2.0**-exponent, wanted[name], rtol=1e-4, atol=1e-4
                    )
