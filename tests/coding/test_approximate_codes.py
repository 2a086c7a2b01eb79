"""Codes that give a gradient that is near: how near, on average and at worst."""

import itertools
import math
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.coding import (
    BernoulliGradientCode,
    BlockStragglers,
    ErasureHead,
    RandomStragglers,
    RegularizedBernoulliGradientCode,
    StochasticBlockCode,
)
from phalanx.coding.linear_code import relative_error
from phalanx.errors import DecodeError

SMALL = [
    ErasureHead(6, copies=2),
    ErasureHead(7, copies=3, rescale=False),
    BernoulliGradientCode(7, seed=1),
    RegularizedBernoulliGradientCode(7, expected_load=2),
    StochasticBlockCode(6, inside=0.8, across=0.2),
]
every_code = pytest.mark.parametrize("code", SMALL, ids=repr)
every_decoder = pytest.mark.parametrize("decoding", ["one-step", "optimal", "algorithmic"])
DRAWS = 300


def patterns(number):
    """Every set of workers that arrived, but the empty one."""
    return [
        torch.tensor([worker in arrived for worker in range(number)])
        for size in range(1, number + 1)
        for arrived in combinations(range(number), size)
    ]


def squared_error(code, arrived):
    """`err / k` from the definition."""
    share = code.coefficients(arrived) @ code.weights
    return (share - 1).square().mean().item()


def drawn(code, num_stragglers, seed):
    """The squared error of an assignment and stragglers of one draw."""
    if hasattr(code, "seed"):
        code = replace(code, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    return squared_error(code, ~RandomStragglers(num_stragglers)(code.assignment, draw))


def assert_is_the_mean(samples, expected):
    samples = torch.tensor(samples, dtype=torch.float64)
    standard_error = samples.std() / math.sqrt(len(samples))
    assert (samples.mean() - expected).abs() <= 3 * standard_error


@every_code
def test_the_error_bounds_the_distance_to_the_mean(code, subtests):
    """Whoever arrives; and the bound is reached, by gradients that point the same way."""
    for decoding, rescale in itertools.product(
        ["one-step", "optimal", "algorithmic"], [False, True]
    ):
        with subtests.test(decoding=decoding, rescale=rescale):
            code = replace(code, decoding=decoding, rescale=rescale)
            number = code.num_workers
            gradients = torch.randn(number, 30, generator=torch.Generator().manual_seed(0)).double()
            messages = code.encode_all([gradients])
            for arrived in patterns(number)[::3]:
                decoded = code.decode(messages, arrived)
                off = (decoded.gradient - gradients.mean(dim=0)).norm()
                assert off <= decoded.error * gradients.norm(dim=1).square().mean().sqrt() + 1e-9
                share = code.coefficients(arrived) @ code.weights
                assert decoded.error == pytest.approx(
                    (share - 1).square().mean().sqrt().item(), abs=2e-8
                )
                worst = (share - 1)[:, None]
                told = code.decode(code.encode_all([worst]), arrived)
                off = (told.gradient - worst.mean(dim=0)).norm()
                assert off == pytest.approx(
                    (told.error * worst.square().mean().sqrt()).item(), abs=1e-9
                )


@every_code
def test_least_squares_is_best_and_descent_goes_towards_it(code, subtests):
    """`rescale` compares the decoders under which partitions count once on average."""
    for rescale in [False, True]:
        with subtests.test(rescale=rescale):
            for arrived in patterns(code.num_workers)[::6]:
                with_steps = {
                    steps: replace(code, decoding="algorithmic", iterations=steps, rescale=False)
                    for steps in (1, 2, 3, 5, 10, 1000)
                }
                best = squared_error(replace(code, decoding="optimal", rescale=rescale), arrived)
                simple = squared_error(replace(code, decoding="one-step", rescale=rescale), arrived)
                assert best <= simple + 1e-9
                if rescale:
                    continue
                descent = [squared_error(one, arrived) for one in with_steps.values()]
                assert descent[0] <= 1 + 1e-12
                assert all(later <= sooner + 1e-12 for sooner, later in pairwise(descent))
                assert descent[-2] >= best - 1e-9
                assert descent[-1] == pytest.approx(best, abs=1e-3)


def test_optimal_decoding_of_repetition_covers_what_it_can(subtests):
    for number, copies in [(6, 2), (6, 3), (7, 2), (8, 3)]:
        with subtests.test(number=number, copies=copies):
            code = ErasureHead(number, copies=copies, rescale=False)
            for arrived in patterns(number):
                covered = code.assignment[arrived].any(dim=0).double()
                assert torch.equal(code.coefficients(arrived) @ code.weights, covered)
                least = torch.linalg.lstsq(
                    code.weights[arrived].T, torch.ones(number).double(), driver="gelsd"
                ).solution
                assert torch.allclose(least @ code.weights[arrived], covered)


def test_erasure_head_is_exact_when_all_arrive(subtests):
    for decoding in ["one-step", "optimal", "algorithmic"]:
        with subtests.test(decoding=decoding):
            code = ErasureHead(15, copies=3, decoding=decoding)
            gradients = torch.randn(15, 100, generator=torch.Generator().manual_seed(0))
            decoded = code.decode(code.encode_all([gradients]))
            assert torch.allclose(decoded.gradient, gradients.mean(dim=0), atol=1e-6)
            assert decoded.error == 0


def test_rescaling_undoes_the_bias_of_missing_groups():
    """On average over stragglers; without it the gradient shrinks by the share that is covered."""
    gradients = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double() + 1
    code = ErasureHead(12, copies=3)
    means = {}
    for rescale in (True, False):
        one = replace(code, rescale=rescale)
        messages = one.encode_all([gradients])
        sets = [pattern for pattern in patterns(12)[:793] if pattern.sum() == 4]
        means[rescale] = torch.stack([one.decode(messages, arrived).gradient for arrived in sets])
    mean = gradients.mean(dim=0)
    assert torch.allclose(means[True].mean(dim=0), mean)
    covered = 1 - math.comb(9, 4) / math.comb(12, 4)
    assert torch.allclose(means[False].mean(dim=0), covered * mean)


def test_expected_errors_of_repetition(subtests):
    cases = [(100, 5, 80, 0.0206, 4.80), (30, 3, 15, 3.36, 9.31), (60, 6, 48, 0.0011, 2.29)]
    for size, copies, arrived, optimal, one_step in cases:
        with subtests.test(
            size=size, copies=copies, arrived=arrived, optimal=optimal, one_step=one_step
        ):
            code = ErasureHead(size, copies=copies, rescale=False)
            simple = replace(code, decoding="one-step")
            found = size * code.expected_squared_error(arrived)
            lost = size * math.comb(size - copies, arrived) / math.comb(size, arrived)
            assert found == pytest.approx(lost)
            assert found == pytest.approx(optimal, rel=0.02)
            found = size * simple.expected_squared_error(arrived)
            law = size * (size - copies) * (size - arrived) / (arrived * copies * (size - 1))
            assert found == pytest.approx(law)
            assert found == pytest.approx(one_step, rel=0.002)
            # A group is lost too rarely to be seen in so few draws, but for the smallest.
            for one in (code, simple) if optimal > 1 else (simple,):
                samples = [drawn(one, size - arrived, seed) for seed in range(DRAWS)]
                assert_is_the_mean(samples, one.expected_squared_error(arrived))


def test_expected_errors_of_repetition_by_enumeration(subtests):
    for number in [5, 6, 8]:
        with subtests.test(number=number):
            for decoding in ("optimal", "one-step"):
                code = ErasureHead(number, copies=2, rescale=False, decoding=decoding)
                for size in range(1, number + 1):
                    found = [
                        squared_error(code, one) for one in patterns(number) if one.sum() == size
                    ]
                    mean = sum(found) / len(found)
                    assert code.expected_squared_error(size) == pytest.approx(mean, abs=1e-12)


def test_expected_errors_of_the_bernoulli_code(subtests):
    for size, load, arrived in [(100, 5, 80), (60, 6, 30)]:
        with subtests.test(size=size, load=load, arrived=arrived):
            code = BernoulliGradientCode(size, expected_load=load, decoding="one-step")
            expected = code.expected_squared_error(arrived)
            assert size * expected == pytest.approx(size * (size - load) / (arrived * load))
            if (size, load, arrived) == (100, 5, 80):
                assert size * expected == pytest.approx(23.75)
            assert_is_the_mean(
                [drawn(code, size - arrived, seed) for seed in range(DRAWS)], expected
            )


def test_expected_errors_of_the_stochastic_block_code(subtests):
    for size, cluster, arrived, figure in [(100, 5, 80, 14.88), (100, 10, 50, 14.04)]:
        with subtests.test(size=size, cluster=cluster, arrived=arrived, figure=figure):
            inside, across = 0.7, 0.3 * cluster / (size - cluster)
            code = StochasticBlockCode(
                size, cluster_size=cluster, inside=inside, across=across, decoding="one-step"
            )
            assert code.load == pytest.approx(cluster)
            expected = code.expected_squared_error(arrived)
            share = cluster / size
            scale = 1 / (arrived * (share * inside + (1 - share) * across))
            law = scale**2 * (
                arrived * share * inside * (1 - inside)
                + arrived * (1 - share) * across * (1 - across)
                + (inside - across) ** 2
                * arrived
                * share
                * (1 - share)
                * (size - arrived)
                / (size - 1)
            )
            assert expected == pytest.approx(law)
            assert size * expected == pytest.approx(figure, rel=0.001)
            assert_is_the_mean(
                [drawn(code, size - arrived, seed) for seed in range(DRAWS)], expected
            )


def test_expected_errors_of_the_regularised_code():
    code = RegularizedBernoulliGradientCode(60, expected_load=2, decoding="one-step")
    loads = [replace(code, seed=seed).assignment.sum(dim=1).double() for seed in range(100)]
    idle = math.comb(60, 0) * (1 - 2 / 60) ** 60  # they get one partition each
    assert_is_the_mean([load.mean().item() for load in loads], code.load + idle)
    assert code.load < 2


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(1, 12))
def test_the_extremes_of_the_stochastic_block_code_are_the_other_codes(size, cluster, seed, r):
    cluster = max(part for part in range(1, cluster + 1) if size % part == 0)
    r = min(r, size)
    inside_only = StochasticBlockCode(
        size, cluster_size=cluster, inside=1.0, across=0.0, seed=seed, decoding="one-step"
    )
    repetition = ErasureHead(size, copies=cluster, rescale=False, decoding="one-step")
    assert inside_only.expected_squared_error(r) == pytest.approx(
        repetition.expected_squared_error(r), abs=1e-12
    )
    held = inside_only.assignment
    assert (held.sum(dim=0) == cluster).all()
    assert (held.sum(dim=1) == cluster).all()
    assert len(torch.unique(held, dim=0)) == size // cluster
    chance = cluster / size
    everywhere = StochasticBlockCode(
        size, cluster_size=cluster, inside=chance, across=chance, decoding="one-step"
    )
    bernoulli = BernoulliGradientCode(size, expected_load=cluster, decoding="one-step")
    assert everywhere.expected_squared_error(r) == pytest.approx(
        bernoulli.expected_squared_error(r)
    )


def test_there_is_no_closed_form_for_other_decoders():
    with pytest.raises(ValueError, match="decoding must be 'one-step'"):
        BernoulliGradientCode().expected_squared_error(3)
    with pytest.raises(ValueError, match="without rescale"):
        ErasureHead().expected_squared_error(3)
    with pytest.raises(ValueError, match="num_arrived must be from 1 to num_workers = 15, got 0"):
        ErasureHead(rescale=False).expected_squared_error(0)


def test_assignments_follow_their_seed_and_leave_nobody_idle():
    for kind in (
        BernoulliGradientCode,
        RegularizedBernoulliGradientCode,
        StochasticBlockCode,
    ):
        one, same, other = (kind(num_workers=30, seed=seed).assignment for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        lone = kind(num_workers=3, seed=5).assignment
        assert lone.any(dim=1).all()
    sparse = BernoulliGradientCode(200, expected_load=1)
    assert sparse.assignment.any(dim=1).all()


def test_the_regularised_code_cuts_overloaded_workers_back():
    for seed in range(20):
        free = BernoulliGradientCode(80, expected_load=2, seed=seed).assignment
        cut = RegularizedBernoulliGradientCode(80, expected_load=2, seed=seed).assignment
        load = free.sum(dim=1)
        assert torch.equal(cut.sum(dim=1), torch.where(load > 4, 2, load))
        assert not (cut & ~free).any()


def test_an_error_beyond_the_bound_is_refused():
    code = ErasureHead(6, copies=2, rescale=False, max_error=0.6)
    messages = torch.ones(6, 3)
    two, one = (torch.tensor(here) for here in ([1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]))
    assert code.decode(messages, two.bool()).error == pytest.approx(math.sqrt(1 / 3))
    assert not code.can_decode(one.bool())
    with pytest.raises(DecodeError, match=r"leave an error of 0\.816, and max_error is 0\.6"):
        code.decode(messages, one.bool())


def test_a_bound_of_zero_waits_for_every_group():
    code = ErasureHead(6, copies=2, max_error=0.0)
    for arrived in patterns(6):
        covered = all(arrived[list(group)].any() for group in code.groups)
        assert code.can_decode(arrived) == covered


def test_rounding_of_the_algebra_is_no_error():
    assert relative_error(torch.ones(5, dtype=torch.float64) + 1e-12) == 0


def test_recommended_clusters_are_just_hidden(subtests):
    for size, cluster, load in [(100, 5, 5), (100, 10, 5), (60, 6, 3)]:
        with subtests.test(size=size, cluster=cluster, load=load):
            code = StochasticBlockCode.recommend(size, cluster, load)
            assert code.load == pytest.approx(load)
            assert code.signal_to_noise == pytest.approx(0.95)
            assert not code.detectable()
            assert StochasticBlockCode.recommend(
                size, cluster, load, signal_to_noise=1.05
            ).detectable()
            inside, across, number = size * code.inside, size * code.across, size / cluster
            kesten_stigum = (inside - across) ** 2 / (number * (inside + (number - 1) * across))
            assert code.signal_to_noise == pytest.approx(kesten_stigum)


def test_recommendations_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="load must be from 1 to num_workers = 10, got 11"):
        StochasticBlockCode.recommend(10, 5, 11)
    small = StochasticBlockCode.recommend(20, 1, 4)  # even a chance of one inside hides it
    assert small.inside == pytest.approx(1)
    assert small.load == pytest.approx(4)


def test_against_an_adversary_who_knows_the_groups_random_codes_do_better():
    """Least squares, 20 draws; fractional repetition loses a partition for every straggler."""
    inside, across, draws = 0.7, 0.3 * 5 / 95, 20
    random, killed = dict.fromkeys("RSB", 0.0), dict.fromkeys("RSB", 0.0)
    for seed in range(draws):
        hidden = StochasticBlockCode(100, cluster_size=5, inside=inside, across=across, seed=seed)
        in_order = [worker // 5 for worker in range(100)]
        cases = {
            "R": (ErasureHead(100, copies=5, rescale=False), None),
            "S": (hidden, hidden.clusters.tolist()),
            "B": (BernoulliGradientCode(100, expected_load=5, seed=seed), in_order),
        }
        for name, (code, clusters) in cases.items():
            silent = BlockStragglers(20, clusters)(code.assignment)
            killed[name] += 100 * squared_error(code, ~silent) / draws
            random[name] += 100 * drawn(code, 20, seed) / draws
    assert killed["R"] == pytest.approx(20)
    assert killed["B"] < killed["S"] < killed["R"]
    assert random["R"] < random["S"] < random["B"]
