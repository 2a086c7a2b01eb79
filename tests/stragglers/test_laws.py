"""What every waiting policy and delay model of the room promises, one case per member."""

import math
import pickle

import pytest
import torch

from laws import concrete
from phalanx import stragglers
from phalanx.stragglers import (
    DelayModel,
    FirstOf,
    RecordedTrace,
    ShiftedExponential,
    UntilDecodable,
    WaitFor,
    WaitingPolicy,
)


def some(arrived):
    """Whether anybody is there."""
    return bool(arrived.any())


GIVEN = {
    WaitFor: (3,),
    UntilDecodable: (some,),
    FirstOf: ([WaitFor(3), UntilDecodable(some)],),
}
every_policy = pytest.mark.parametrize("kind", concrete(stragglers, WaitingPolicy))
every_model = pytest.mark.parametrize("kind", concrete(stragglers, DelayModel))


@pytest.fixture
def model(kind, tmp_path):
    if kind is not RecordedTrace:
        return kind()
    path = tmp_path / "trace.csv"
    path.write_text("1,2,3,4,5\n5,4,3,2,1\n")
    return kind(path)


@every_policy
def test_a_policy_waits_longer_for_slower_workers_and_keeps_delays_as_they_are(kind):
    policy = kind(*GIVEN.get(kind, ()))
    drawn = ShiftedExponential().draw(20, 5, torch.Generator().manual_seed(0))
    before = drawn.clone()
    ends = policy.ends_at(drawn)
    assert drawn.equal(before)
    assert (policy.ends_at(drawn + 1) >= ends).all()
    shuffled = policy.ends_at(drawn[:, torch.tensor([4, 2, 0, 1, 3])])
    assert shuffled.equal(ends)
    memory = policy.init()
    for row in drawn:
        end = policy.ends_at(row, memory).item()
        assert math.isfinite(end)
        memory = policy.update(row, end, memory)
        assert isinstance(memory, tuple)
        assert all(isinstance(one, float) for one in memory)


@every_policy
def test_a_policy_is_a_value(kind):
    policy = kind(*GIVEN.get(kind, ()))
    assert pickle.loads(pickle.dumps(policy)) == policy


@every_model
def test_delays_of_a_round_follow_from_seed_and_round_alone(model):
    forward = [model.at(step, 5, 0) for step in range(6)]
    backward = [model.at(step, 5, 0) for step in reversed(range(6))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert one.equal(other)
        assert one.shape == (5,)
        assert one.dtype == torch.float64
        assert (one >= 0).all()
    copy = pickle.loads(pickle.dumps(model))
    assert copy.at(3, 5, 0).equal(forward[3])
