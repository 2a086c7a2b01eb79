"""Waiting policies, on recorded delays and asked along the way; and the virtual clock."""

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import concrete
from phalanx import stragglers
from phalanx.stragglers import (
    AdaptiveDeadline,
    Deadline,
    FirstOf,
    Pareto,
    ShiftedExponential,
    UntilDecodable,
    WaitFor,
    WaitForAll,
    WaitingPolicy,
    virtual_clock,
)


def covers_pairs(arrived):
    """Whether one of each two neighbours is there, as in a code that repeats twice."""
    return bool(arrived.reshape(-1, 2).any(dim=1).all())


POLICIES = [kind() for kind in concrete(stragglers, WaitingPolicy) if kind is not WaitFor] + [
    WaitFor(5),
    Deadline(1.2, min_messages=3),
    Deadline(0.1, min_messages=0),
    AdaptiveDeadline(first_s=1.5, quantile=0.5),
    UntilDecodable(covers_pairs),
    FirstOf([WaitFor(7), UntilDecodable(covers_pairs), AdaptiveDeadline(first_s=1.3)]),
]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda one: type(one).__name__)


def delays(rounds=20, workers=12, seed=0):
    return ShiftedExponential().draw(rounds, workers, torch.Generator().manual_seed(seed))


@every_policy
def test_one_round_is_many_rounds_one_by_one(policy):
    arrivals = delays()
    together = policy.ends_at(arrivals)
    assert together.shape == (20,)
    assert together.equal(torch.stack([policy.ends_at(row) for row in arrivals]))
    assert policy.ends_at(arrivals.reshape(4, 5, 12)).equal(together.reshape(4, 5))


@every_policy
def test_an_event_loop_ends_the_round_when_the_record_says(policy):
    """Asked after every message: never over too early, and over at the very time."""
    for arrivals in delays(rounds=5):
        end = policy.ends_at(arrivals).item()
        for now in arrivals.sort().values.tolist():
            heard = torch.where(arrivals <= now, arrivals, math.inf)
            if now < end:
                assert policy.ends_at(heard).item() > now
            else:
                assert policy.ends_at(heard).item() == end
        assert policy.ends_at(torch.where(arrivals <= end, arrivals, math.inf)).item() == end


@every_policy
def test_what_comes_after_the_end_is_not_remembered(policy):
    (arrivals,) = delays(rounds=1)
    end = policy.ends_at(arrivals).item()
    heard = torch.where(arrivals <= end, arrivals, math.inf)
    assert policy.update(arrivals, end, policy.init()) == policy.update(heard, end, policy.init())
    assert len(policy.update(arrivals, end)) == len(policy.init())


def test_waiting_for_some_takes_as_long_as_the_law_says(subtests):
    for num_workers in [10, 100, 1000]:
        with subtests.test(num_workers=num_workers):
            model = ShiftedExponential(0.0, 1.0)
            drawn = model.draw(4000, num_workers, torch.Generator().manual_seed(2))
            for rank in (num_workers // 2, num_workers):
                rounds = virtual_clock(drawn, WaitFor(rank))
                expected = model.expected_arrival(rank, num_workers)
                assert rounds.duration_s.mean().item() == pytest.approx(expected, rel=0.02)
                assert (rounds.arrived.sum(dim=1) == rank).all()
            assert virtual_clock(drawn, WaitForAll()).duration_s.equal(drawn.amax(dim=1))


def test_a_deadline_waits_for_those_without_whom_no_round_ends():
    arrivals = torch.tensor([[1.0, 2.0, 3.0], [7.0, 8.0, 9.0], [1.0, 2.0, math.inf]])
    assert Deadline(5.0, min_messages=2).ends_at(arrivals).tolist() == [3.0, 8.0, 5.0]
    assert Deadline(5.0, min_messages=0).ends_at(arrivals).tolist() == [3.0, 5.0, 5.0]


def test_an_adaptive_deadline_finds_its_share_from_above_and_from_below():
    drawn = delays(rounds=300, workers=200)
    wanted = 1.2 * drawn.quantile(0.8).item()
    for first_s in (100.0, 0.01):
        policy = AdaptiveDeadline(first_s=first_s, quantile=0.8, slack=1.2)
        rounds = virtual_clock(drawn, policy)
        assert rounds.duration_s[100:].mean().item() == pytest.approx(wanted, rel=0.02)
        assert rounds.arrived[100:].double().mean().item() > 0.8


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_the_round_ends_with_the_first_decodable_set(pairs, seed):
    (arrivals,) = delays(rounds=1, workers=2 * pairs, seed=seed)
    end = UntilDecodable(covers_pairs).ends_at(arrivals).item()
    assert end == arrivals.reshape(-1, 2).amin(dim=1).amax().item()


def test_a_code_that_needs_nobody_or_refuses_everybody():
    arrivals = delays(rounds=2)
    assert UntilDecodable(lambda arrived: True).ends_at(arrivals).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="can_decode must accept the messages of all workers"):
        UntilDecodable(lambda arrived: False).ends_at(arrivals)


def test_late_work_is_cancelled_or_finished():
    drawn = torch.tensor([[1.0, 5.0], [1.0, 9.0], [1.0, 1.0], [4.0, 1.0], [9.0, 9.0]])
    cancelled = virtual_clock(drawn, WaitFor(1))
    assert cancelled.duration_s.tolist() == [1.0, 1.0, 1.0, 1.0, 9.0]
    assert cancelled.arrived[2].tolist() == [True, True]
    # The second worker is at its first task until second 5, and then takes the task of round 3.
    finished = virtual_clock(drawn, WaitFor(1), late="finished")
    assert finished.duration_s.tolist() == [1.0, 1.0, 1.0, 3.0, 9.0]
    assert finished.arrived.tolist() == [
        [True, False],
        [True, False],
        [True, False],
        [False, True],
        [False, True],
    ]


@every_policy
def test_nobody_is_late_in_the_end_if_all_are_waited_for(policy):
    drawn = delays()
    every = virtual_clock(drawn, WaitForAll())
    assert virtual_clock(drawn, WaitForAll(), late="finished").duration_s.equal(every.duration_s)
    assert (virtual_clock(drawn, policy).duration_s <= every.duration_s).all()


def test_no_rounds_take_no_time():
    for late in ("cancelled", "finished"):
        assert virtual_clock(torch.empty(0, 3), WaitForAll(), late=late).arrived.shape == (0, 3)


def test_waiting_for_ever_and_clocks_that_run_backwards_are_refused():
    lost = torch.tensor([[1.0, 1.0], [1.0, math.inf]])
    for late in ("cancelled", "finished"):
        with pytest.raises(ValueError, match="got round 1, which waits for ever"):
            virtual_clock(lost, WaitForAll(), late=late)
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="delays must be seconds of at least 0"):
            virtual_clock(torch.tensor([[bad]]), WaitForAll())
    with pytest.raises(ValueError, match="num_messages must be at most the 2 workers, got 3"):
        WaitFor(3).ends_at(lost)


def test_bad_arguments_are_refused(subtests):
    cases = [
        (WaitFor, {"num_messages": 0}, "num_messages must be at least 1, got 0"),
        (Deadline, {"deadline_s": 0.0}, "deadline_s must be finite and above 0, got 0.0"),
        (Deadline, {"min_messages": -1}, "min_messages must be at least 0, got -1"),
        (AdaptiveDeadline, {"quantile": 0.0}, "quantile must be above 0 and at most 1, got 0.0"),
        (AdaptiveDeadline, {"slack": 1.0}, "slack must be finite and above 1, got 1.0"),
        (FirstOf, {"policies": []}, "policies must hold at least 1 policy, got none"),
    ]
    for kind, arguments, rule in cases:
        refused = pytest.raises(ValueError, match=rule)
        with subtests.test(kind=kind, arguments=arguments, rule=rule), refused:
            kind(**arguments)


@pytest.mark.slow
def test_ten_thousand_rounds_of_a_thousand_workers_take_seconds():
    drawn = Pareto().draw(10_000, 1000, torch.Generator().manual_seed(0))
    for policy in (WaitFor(800), AdaptiveDeadline(), UntilDecodable(lambda a: a.sum() >= 800)):
        began = time.monotonic()
        virtual_clock(drawn, policy)
        assert time.monotonic() - began < 10
