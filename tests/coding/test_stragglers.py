"""Who is silent: bad luck and adversaries."""

from itertools import combinations

import pytest
import torch

from laws import concrete
from phalanx import coding
from phalanx.coding import (
    BernoulliGradientCode,
    BlockStragglers,
    ErasureHead,
    GreedyStragglers,
    RandomStragglers,
    SpectralStragglers,
    StochasticBlockCode,
    Stragglers,
)

KINDS = concrete(coding, Stragglers)
every_kind = pytest.mark.parametrize("kind", KINDS)


def error(code, silent):
    """`err` of the optimal decoder."""
    held = code.weights[~silent]
    ones = torch.ones(held.shape[1], dtype=torch.float64)
    solution = torch.linalg.lstsq(held.T, ones, driver="gelsd").solution
    return (solution @ held - 1).square().sum().item()


@every_kind
def test_so_many_are_silent_and_the_same_by_the_same_draw(kind, subtests):
    for number in [0, 7, 12]:
        with subtests.test(number=number):
            held = BernoulliGradientCode(12).assignment
            before = held.clone()
            silent = kind(num_stragglers=number)(held, torch.Generator().manual_seed(3))
            assert silent.dtype == torch.bool
            assert silent.sum() == number
            assert torch.equal(silent, kind(number)(held, torch.Generator().manual_seed(3)))
            assert torch.equal(held, before)
            assert torch.equal(kind(number)(held), kind(number)(held))


@every_kind
def test_bad_numbers_are_refused(kind):
    with pytest.raises(ValueError, match="num_stragglers must be at least 0, got -1"):
        kind(num_stragglers=-1)
    with pytest.raises(ValueError, match="num_stragglers must be at most num_workers, got 7 of 6"):
        kind(num_stragglers=7)(ErasureHead(6, copies=2).assignment)


def test_random_stragglers_are_uniform():
    draw = torch.Generator().manual_seed(0)
    held = torch.eye(5, dtype=torch.bool)
    counts = sum(RandomStragglers(2)(held, draw).double() for _ in range(2000))
    deviation = (2000 * 0.4 * 0.6) ** 0.5
    assert (counts - 800).abs().max() < 4 * deviation


@pytest.mark.parametrize(
    "kind", [BlockStragglers, GreedyStragglers], ids=lambda kind: kind.__name__
)
def test_whole_groups_of_repetition_are_silenced(kind, subtests):
    """`s floor((k - r) / s)` partitions are lost: k - r where s divides it."""
    for size, copies, number in [(100, 5, 20), (100, 5, 23), (12, 3, 6)]:
        with subtests.test(size=size, copies=copies, number=number):
            code = ErasureHead(size, copies=copies)
            assert error(code, kind(number)(code.assignment)) == pytest.approx(
                number - number % copies
            )


def test_spectral_stragglers_find_the_groups_of_repetition():
    code = ErasureHead(100, copies=5)
    silent = SpectralStragglers(20, num_clusters=20)(code.assignment)
    assert error(code, silent) == pytest.approx(20)


def test_known_clusters_are_silenced_in_order():
    held = BernoulliGradientCode(6).assignment
    assert BlockStragglers(3, clusters=[1, 0, 1, 2, 0, 2])(held).tolist() == [
        *(True, True, True),
        *(False, False, False),
    ]
    assert BlockStragglers(2, clusters=[1, 0, 1, 2, 0, 2])(held).tolist() == [
        *(True, False, True),
        *(False, False, False),
    ]
    with pytest.raises(ValueError, match="clusters must name one for each of 6 workers, got 2"):
        BlockStragglers(1, clusters=[0, 1])(held)


def test_the_greedy_choice_is_the_worst_single_worker_every_time(subtests):
    """Against brute force, which decodes without each candidate."""
    for seed in range(5):
        with subtests.test(seed=seed):
            code = BernoulliGradientCode(10, expected_load=2, seed=seed)
            silent = torch.zeros(10, dtype=torch.bool)
            for number in range(1, 5):
                found = GreedyStragglers(number)(code.assignment)
                assert (found & ~silent).sum() == 1
                worst = 0.0
                for worker in (~silent).nonzero().flatten().tolist():
                    without = silent.clone()
                    without[worker] = True
                    worst = max(worst, error(code, without))
                assert error(code, found) == pytest.approx(worst, abs=1e-4)
                silent = found


def test_the_greedy_choice_is_near_the_worst_and_worse_than_luck():
    code = BernoulliGradientCode(10, expected_load=3)
    errors = []
    for chosen in combinations(range(10), 3):
        silent = torch.zeros(10, dtype=torch.bool)
        silent[list(chosen)] = True
        errors.append(error(code, silent))
    greedy = error(code, GreedyStragglers(3)(code.assignment))
    assert greedy >= 0.7 * max(errors)
    assert greedy > sum(errors) / len(errors)


def agreement(found, clusters):
    """The share of pairs of workers of one cluster that are found to be together."""
    together = clusters[:, None] == clusters[None, :]
    together.fill_diagonal_(False)
    return ((found[:, None] == found[None, :]) & together).sum().item() / together.sum().item()


def test_spectral_stragglers_see_hidden_clusters_only_above_the_threshold(subtests):
    for seed in range(3):
        with subtests.test(seed=seed):
            draw = torch.Generator().manual_seed(seed)
            found = {}
            for ratio in (0.5, 4.0):
                code = StochasticBlockCode.recommend(120, 30, 12, signal_to_noise=ratio, seed=seed)
                assert code.detectable() == (ratio > 1)
                clusters = SpectralStragglers(30, num_clusters=4).estimate(code.assignment, draw)
                found[ratio] = agreement(clusters, code.clusters)
            assert found[4.0] > 0.8
            assert found[0.5] < 0.5  # a guess has about a quarter


def test_too_many_clusters_are_refused():
    with pytest.raises(ValueError, match="num_clusters must be at least 2, got 1"):
        SpectralStragglers(num_clusters=1)
    with pytest.raises(ValueError, match="num_clusters must be at most num_workers, got 7 of 6"):
        SpectralStragglers(1, num_clusters=7)(ErasureHead(6, copies=2).assignment)
