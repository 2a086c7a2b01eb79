"""Optimal attacks, which search against the rule: what they see of it, and what they find."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.aggregation import (
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MinimumDiameterAveraging,
    MultiKrum,
    NearestNeighborMixing,
)
from phalanx.attacks import (
    AdversaryKnowledge,
    ALittleIsEnough,
    InnerProductManipulation,
    OptimalALittleIsEnough,
    OptimalInnerProductManipulation,
)
from phalanx.attacks.isometry import coordinates

ATTACKS = [OptimalALittleIsEnough(), OptimalInnerProductManipulation()]
RULES = [Mean(), CoordinateMedian(), Krum(num_byzantine=2), GeometricMedian(num_byzantine=2)]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


def random_rows(seed, num_honest=7, dim=4):
    return torch.randn(num_honest, dim, generator=torch.Generator().manual_seed(seed)) + 1


def damage(rule, honest, forged):
    return (rule(torch.cat([honest, forged])) - honest.mean(dim=0)).norm().item()


@pytest.mark.slow
@every_attack
def test_never_less_damage_than_without_a_shift(attack, subtests):
    for rule in RULES:
        with subtests.test(repr(rule)):
            require_damage(attack, rule)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def require_damage(attack, rule, seed):
    honest = random_rows(seed)
    at_zero = {
        OptimalALittleIsEnough: ALittleIsEnough(z=0.0),
        OptimalInnerProductManipulation: InnerProductManipulation(epsilon=0.0),
    }[type(attack)]
    forged = attack(honest, 2, aggregate=rule)
    least = damage(rule, honest, at_zero(honest, 2))
    assert damage(rule, honest, forged) >= least * (1 - 1e-6)


@every_attack
def test_it_sees_the_honest_messages_and_copies_of_its_own(attack):
    honest, seen = random_rows(0), []

    def rule(messages):
        seen.append(messages.clone())
        return messages.mean(dim=0)

    attack(honest, 3, aggregate=rule)
    assert len(seen) == 2 * attack.evaluations + 1  # however many Byzantine workers there are
    for messages in seen:
        assert messages.shape == (10, 4)
        assert messages[:7].equal(honest)
        assert messages[7:].unique(dim=0).shape == (1, 4)
    assert len({tuple(messages[7].tolist()) for messages in seen}) == len(seen)


def test_it_finds_the_edge_of_what_a_rule_lets_through(subtests):
    """The answer is the last message, if it lies less than 25 from 0 on the one side."""
    honest = torch.tensor([[-1.0], [0.0], [1.0]])

    def rule(messages, sign):
        last = sign * messages[-1]
        return last if 0 <= last < 25 else torch.zeros(1)

    for sign in (1, -1):
        with subtests.test(sign=sign):
            aggregate = functools.partial(rule, sign=sign)
            found = OptimalALittleIsEnough()(honest, 1, aggregate=aggregate).item()
            assert 24 < sign * found < 25


def test_where_no_shift_helps_it_sends_the_mean():
    honest = random_rows(0)
    forged = OptimalALittleIsEnough()(honest, 2, aggregate=lambda messages: torch.zeros(4))
    assert forged.equal(honest.mean(dim=0).expand(2, -1))


BY_DISTANCE = [
    Krum(num_byzantine=2),
    GeometricMedian(num_byzantine=2),
    MinimumDiameterAveraging(num_byzantine=2),
    NearestNeighborMixing(2) >> MultiKrum(2),
]


class Watched:
    """A rule by distances that notes how wide the messages are that it is tried on."""

    needs_distances_only = True

    def __init__(self, rule):
        self.rule, self.widths = rule, []

    def __call__(self, messages):
        self.widths.append(messages.shape[1])
        return self.rule(messages)


@every_attack
def test_a_rule_by_distances_is_tried_in_few_coordinates_to_the_same_effect(attack, subtests):
    honest = random_rows(0, num_honest=7, dim=500)
    for rule in BY_DISTANCE:
        with subtests.test(repr(rule)):
            watched = Watched(rule)
            found = attack(honest, 2, aggregate=watched)
            assert watched.widths == [7 + 2] * (2 * attack.evaluations + 1)
            slow = attack(honest, 2, aggregate=rule.__call__)
            assert damage(rule, honest, found) == pytest.approx(
                damage(rule, honest, slow), rel=1e-3
            )


@given(rows=st.integers(1, 6), dim=st.integers(0, 9), seed=st.integers(0, 2**32))
def test_coordinates_keep_all_distances(rows, dim, seed):
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) + 100
    points, exact = coordinates(drawn), drawn.double()
    assert points.shape == (rows, rows)
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(exact, exact))


@every_attack
def test_overflow_is_no_success(attack):
    honest = random_rows(0).half() * 100
    forged = attack(honest, 2, aggregate=lambda messages: messages[-1])
    assert forged.isfinite().all()
    assert forged.abs().max() > 1000


@every_attack
def test_what_is_sent_is_the_plan(attack):
    honest = random_rows(0)
    plan, memory = attack.plan(
        AdversaryKnowledge(honest, tuple(range(7)), 2, Krum(num_byzantine=2))
    )
    assert memory == ()
    assert isinstance(plan, ALittleIsEnough | InnerProductManipulation)
    assert attack(honest, 2, aggregate=Krum(num_byzantine=2)).equal(plan(honest, 2))


def test_a_single_honest_worker_has_no_spread():
    honest = torch.tensor([[1.0, 2.0]])
    assert OptimalALittleIsEnough()(honest, 1).equal(honest)


@every_attack
def test_a_search_tries_something(attack):
    with pytest.raises(ValueError, match="evaluations must be at least 1, got 0"):
        type(attack)(evaluations=0)
