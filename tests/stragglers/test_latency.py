"""The latency laws against simulation, brute force and the paper's examples."""

import itertools
import math

import pytest
import torch

from phalanx.stragglers import (
    expected_time_mds,
    expected_time_repetition,
    expected_time_uncoded,
    optimal_code_rate,
    optimal_num_blocks,
    optimal_time,
)

RUNS = 20_000


def job_times(num_workers, rate, seed=0):
    """Times of the whole job: `1 + Exp(rate)`."""
    source = torch.Generator().manual_seed(seed)
    return 1 + torch.empty(RUNS, num_workers, dtype=torch.float64).exponential_(
        rate, generator=source
    )


def test_the_mean_times_are_those_of_a_simulation(subtests):
    for rate, (num_workers, num_blocks) in itertools.product(
        [0.3, 1.0, 5.0], [(10, 7), (10, 1), (40, 27), (40, 40)]
    ):
        with subtests.test(rate=rate, num_workers=num_workers, num_blocks=num_blocks):
            times = job_times(num_workers, rate) / num_blocks
            simulated = times.kthvalue(num_blocks, dim=1).values.mean().item()
            assert expected_time_mds(num_workers, num_blocks, rate) == pytest.approx(
                simulated, rel=0.02
            )
            uncoded = (job_times(num_workers, rate, 1) / num_workers).amax(dim=1).mean().item()
            assert expected_time_uncoded(num_workers, rate) == pytest.approx(uncoded, rel=0.02)


def test_repetition_waits_for_the_first_of_each_group(subtests):
    for num_workers, num_blocks in [(10, 5), (12, 3), (6, 6), (8, 1)]:
        with subtests.test(num_workers=num_workers, num_blocks=num_blocks):
            times = job_times(num_workers, 1.0).reshape(RUNS, num_blocks, -1) / num_blocks
            simulated = times.amin(dim=2).amax(dim=1).mean().item()
            assert expected_time_repetition(num_workers, num_blocks) == pytest.approx(
                simulated, rel=0.02
            )
            assert expected_time_repetition(num_workers, num_blocks) >= min(
                expected_time_mds(num_workers, blocks) for blocks in range(1, num_workers + 1)
            )


def test_the_examples_of_the_law():
    assert optimal_num_blocks(10) == 7
    assert optimal_num_blocks(100) == 69
    assert expected_time_mds(10, 7) == pytest.approx(0.2994, abs=5e-5)
    assert expected_time_uncoded(10) == pytest.approx(0.3929, abs=5e-5)
    assert expected_time_mds(100, 69) == pytest.approx(0.0313, abs=5e-5)
    assert expected_time_uncoded(100) == pytest.approx(0.0619, abs=5e-5)


def test_many_workers_approach_the_limit(subtests):
    for rate in [0.1, 1.0, 4.0, 50.0]:
        with subtests.test(rate=rate):
            blocks = optimal_num_blocks(20_000, rate)
            assert blocks / 20_000 == pytest.approx(optimal_code_rate(rate), abs=2e-3)
            assert 20_000 * expected_time_mds(20_000, blocks, rate) == pytest.approx(
                optimal_time(rate), rel=2e-3
            )


def test_the_gain_grows_like_the_logarithm():
    gains = [
        expected_time_uncoded(n) / expected_time_mds(n, optimal_num_blocks(n))
        for n in (10, 100, 1000, 10_000)
    ]
    steps = [later - earlier for earlier, later in itertools.pairwise(gains)]
    assert steps == pytest.approx([math.log(10) / optimal_time()] * 3, rel=0.1)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_blocks must be from 1 to num_workers = 10, got 11"):
        expected_time_mds(10, 11)
    with pytest.raises(ValueError, match="num_blocks must divide num_workers = 10, got 4"):
        expected_time_repetition(10, 4)
    for rate in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="rate must be finite and above 0"):
            optimal_code_rate(rate)
