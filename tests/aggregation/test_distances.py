"""Rules that are told distances alone."""

import itertools

import pytest
import torch

from laws import concrete
from phalanx import aggregation
from phalanx.aggregation import (
    ARC,
    CAF,
    Aggregator,
    Bucketing,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MinimumDiameterAveraging,
    MoNNA,
    NearestNeighborMixing,
    NormClipping,
    Resampling,
    weigh_distances,
)

COMPOSED = [
    Bucketing(2) >> NearestNeighborMixing(1) >> Krum(1),
    Bucketing(2) >> MoNNA(1, reference=3),
    NearestNeighborMixing(2) >> CAF(2),
    Resampling(2) >> GeometricMedian(),
    Bucketing(2) >> Mean(),
]
RULES = [rule() for rule in concrete(aggregation, Aggregator)] + COMPOSED
FIT = [rule for rule in RULES if rule.needs_distances_only]
UNFIT = [rule for rule in RULES if not rule.needs_distances_only]
UNFIT += [NormClipping() >> Krum(), ARC() >> Mean(), NearestNeighborMixing() >> CenteredClipping()]


def messages(num_workers=11, dim=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_workers, dim, generator=generator, dtype=torch.float64)


def squared(rows):
    return (rows[:, None] - rows[None]).square().sum(dim=2)


def test_what_needs_more_than_distances_is_known():
    known = {type(rule) for rule in FIT} | {type(rule) for rule in COMPOSED}
    assert {Krum, Mean, GeometricMedian, MinimumDiameterAveraging, MoNNA, CAF} <= known
    assert CenteredClipping() in UNFIT
    assert CoordinateMedian() in UNFIT
    assert (NearestNeighborMixing(1) >> CoordinateMedian()) not in FIT


@pytest.mark.parametrize("rule", UNFIT, ids=repr)
def test_rules_that_need_more_are_refused(rule):
    with pytest.raises(ValueError, match="rule must weigh messages by their distances alone"):
        weigh_distances(rule, squared(messages()), 1, rule.init(0))


@pytest.mark.parametrize("rule", FIT, ids=repr)
def test_distances_say_what_messages_say(rule, subtests):
    for seed, lie in itertools.product([0, 1], [1.0, 1e5]):
        with subtests.test(seed=seed, lie=lie):
            rows = messages(seed=seed)
            rows[0] *= lie
            state = rule.init(30)
            known = rule.init(0)
            for _ in range(2):  # pipelines draw anew
                answer, state = rule.update(rows, state)
                told, known = weigh_distances(rule, squared(rows), rule.num_tolerated(11), known)
                torch.testing.assert_close(told.weights, answer.weights, rtol=1e-6, atol=1e-9)
                assert torch.equal(told.suspects, answer.suspects)
                assert told.value.shape == (0,)


def test_who_is_absent_has_no_weight():
    rows = messages()
    present = torch.ones(11, dtype=torch.bool)
    present[[0, 4]] = False
    rule = MoNNA(num_byzantine=2, reference=5)
    told, _ = weigh_distances(rule, squared(rows[present]), 2, (), present)
    answer = MoNNA(num_byzantine=2, reference=3).explain(rows[present])
    torch.testing.assert_close(told.weights[present], answer.weights)
    assert told.dropped.tolist() == (~present).tolist()
    assert told.weights[~present].tolist() == [0, 0]
