"""What only Moniqua promises: as long as its bound holds, and what happens where it does not."""

import pytest
import torch

from gossip import reference
from gossip.cases import CROOKED, rounds
from phalanx.gossip import DPSGD, Moniqua, SimulatedNetwork, Topology, average, mix, spread
from phalanx.randomness import generator

RING = Topology.ring(5)


def start(num_nodes, dim, span=1.0, seed=0):
    """Values between 100 and 100 + span, so that many turns of the circle lie below them."""
    source = torch.Generator().manual_seed(seed)
    return 100 + span * torch.rand(num_nodes, dim, generator=source, dtype=torch.float64)


def test_it_is_the_paper_s_algorithm(subtests):
    for topology in [RING, CROOKED]:
        for bits, rounding in [(1, "nearest"), (5, "nearest"), (2, "random"), (8, "random")]:
            with subtests.test(f"{topology}, {bits}, {rounding}"):
                algorithm = Moniqua(1.1, bits, rounding, consensus_rate=0.3)
                value, memory = start(topology.num_nodes, 12), None
                rows, network = list(value), SimulatedNetwork(topology)
                for step in range(3):
                    source = generator(3, "gossip", step, "x", "shared")
                    drawn = torch.rand(12, generator=source, dtype=torch.float64)
                    rows = reference.moniqua(
                        rows,
                        topology.weights,
                        algorithm.circumference,
                        1 << bits,
                        drawn if rounding == "random" else 0.5,
                        0.3,
                    )
                    found, memory, _ = rounds(network, algorithm, {"x": value}, 1, memory)
                    value = found["x"]
                    torch.testing.assert_close(value, torch.stack(rows), rtol=1e-10, atol=1e-10)


def test_the_circle_has_room_for_the_bound_and_the_error(subtests):
    """The least circumference: another value that stands there is always farther away."""
    for bits, rounding in [(1, "nearest"), (5, "nearest"), (2, "random"), (8, "random")]:
        with subtests.test(f"{bits}, {rounding}"):
            algorithm = Moniqua(0.7, bits, rounding)
            assert algorithm.circumference == pytest.approx(2 * (algorithm.error + 0.7))
            places = 1 << bits
            assert algorithm.error == pytest.approx(
                algorithm.circumference / (places if rounding == "random" else 2 * places)
            )


def test_values_within_the_bound_are_decoded_and_the_mean_stays(subtests):
    for topology in [RING, CROOKED]:
        for bits, rounding in [(1, "nearest"), (5, "nearest"), (2, "random"), (8, "random")]:
            with subtests.test(f"{topology}, {bits}, {rounding}"):
                algorithm = Moniqua(1.0, bits, rounding)
                value = start(topology.num_nodes, 300)
                exact = mix(DPSGD(), SimulatedNetwork(topology), {"x": value}).values["x"]
                found = mix(algorithm, SimulatedNetwork(topology), {"x": value}).values["x"]
                # Twice: the neighbours' values and the own one are off.
                assert (found - exact).abs().max() <= 2 * algorithm.error
                torch.testing.assert_close(found.mean(dim=0), value.mean(dim=0), rtol=0, atol=1e-10)


def test_nodes_beyond_the_bound_are_taken_for_closer(subtests):
    """By whole turns, and nobody is told."""
    for bits, rounding in [(1, "nearest"), (5, "nearest"), (2, "random"), (8, "random")]:
        with subtests.test(f"{bits}, {rounding}"):
            algorithm, pair = Moniqua(0.5, bits, rounding), SimulatedNetwork(Topology.ring(2))
            value = torch.tensor([[0.0], [1.25 * algorithm.circumference]]).double()
            apart = mix(algorithm, pair, {"x": value}).values["x"] - value
            exact = mix(DPSGD(), pair, {"x": value}).values["x"] - value
            turns = (exact - apart) / (algorithm.circumference / 2)  # a weight of a half
            assert turns.abs().min() > 0.4
            if bits == 8:  # nodes agree but for the turn
                found = average(value, algorithm, pair, rounds=40).values
                off = (found[1] - found[0]) / algorithm.circumference
                assert off.item() == pytest.approx(1.0, abs=0.01)


def test_beyond_the_bound_the_mean_may_move_by_turns(subtests):
    for bits, rounding in [(1, "nearest"), (2, "random")]:
        with subtests.test(f"{bits}, {rounding}"):
            algorithm, value = Moniqua(0.2, bits, rounding), start(5, 300)
            found = mix(algorithm, SimulatedNetwork(RING), {"x": value}).values["x"]
            turns = (found - value).sum(dim=0) / (algorithm.circumference / 3)  # weights of a third
            torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-6)
            assert (turns.abs() > 0.5).float().mean() > 0.2


def test_random_rounding_is_d_psgd_in_expectation():
    algorithm, value = Moniqua(1.0, bits=3, consensus_rate=0.5), start(5, 40)
    exact = mix(DPSGD(0.5), SimulatedNetwork(RING), {"x": value}).values["x"]
    found = torch.stack(
        [
            mix(algorithm, SimulatedNetwork(RING), {"x": value}, seed=seed).values["x"]
            for seed in range(400)
        ]
    )
    sigma = found.std(dim=0) / 400**0.5
    assert ((found.mean(dim=0) - exact).abs() <= 4.5 * sigma + 1e-9).all()
    assert sigma.max() > 0


def test_every_round_contracts_but_for_the_error(subtests):
    """`(1 - rate * gap) * distance + rate * ||I - W|| * error * sqrt(values)`, or less."""
    for topology in [RING, CROOKED]:
        for bits, rounding in [(1, "nearest"), (5, "nearest"), (2, "random"), (8, "random")]:
            with subtests.test(f"{topology}, {bits}, {rounding}"):
                algorithm = Moniqua(1.5, bits, rounding, consensus_rate=0.2)
                value, memory, network = (
                    start(topology.num_nodes, 50),
                    None,
                    SimulatedNetwork(topology),
                )
                steps = [0.2 * (1 - one) for one in topology.eigenvalues]
                slowest = max(abs(1 - step) for step in steps[1:])
                for _ in range(20):
                    before = spread(value) ** 0.5
                    found, memory, _ = rounds(network, algorithm, {"x": value}, 1, memory)
                    value = found["x"]
                    noise = max(steps) * algorithm.error * value.numel() ** 0.5
                    assert spread(value) ** 0.5 <= slowest * before + noise + 1e-9


def test_random_rounding_ends_closer_the_smaller_the_step():
    """On a ring of 8 a quarter of a place times the rate; to the nearest, half a place."""
    value, ring = start(8, 400).float(), SimulatedNetwork(Topology.ring(8))
    for rounding, rates, wanted in (
        ("random", (1.0, 0.25), (0.25, 0.25 / 4)),
        ("nearest", (1.0, 0.25), (0.27, 0.27)),
    ):
        for rate, left in zip(rates, wanted, strict=True):
            algorithm = Moniqua(1.5, 8, rounding, rate)
            found = average(value, algorithm, ring, rounds=150)
            off = (spread(found.values) / value.numel()) ** 0.5
            assert off == pytest.approx(left * algorithm.circumference / 256, rel=0.2)


def test_bad_arguments_are_refused(subtests):
    for make, words in [
        (lambda: Moniqua(0.0), "bound must be above 0, got 0.0"),
        (lambda: Moniqua(bits=1), "bits must be from 2 to 8, got 1"),
        (lambda: Moniqua(bits=9, rounding="nearest"), "bits must be from 1 to 8, got 9"),
        (lambda: Moniqua(consensus_rate=2.0), "at most 1, got 2.0"),
    ]:
        with subtests.test(words), pytest.raises(ValueError, match=words):
            make()
