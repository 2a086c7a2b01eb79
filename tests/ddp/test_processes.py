"""Real gloo processes: all rules, every option of DDP, liars, and ranks that die."""

import warnings

import pytest
import torch

from ddp import cases
from ddp.ranks import Ranks
from laws import concrete
from phalanx import aggregation
from phalanx.aggregation import (
    ARC,
    Aggregator,
    Bucketing,
    CenteredClipping,
    CoordinateMedian,
    CoordinateRule,
    GeometricMedian,
    Krum,
    NearestNeighborMixing,
    TrimmedMean,
)
from phalanx.errors import DecodeError, RankLostError, TooManyByzantineError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Krum's guarantee"),
]
NUM_RANKS = 4


def fitting(rule):
    """The rule, or with nobody to survive if 4 ranks are too few for it."""
    try:
        rule.num_tolerated(NUM_RANKS)
    except ValueError:
        return rule.with_num_byzantine(0)
    return rule


def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            *(fitting(rule()) for rule in concrete(aggregation, Aggregator)),
            ARC() >> NearestNeighborMixing() >> CenteredClipping(),
            Bucketing(2) >> CoordinateMedian(),
            CenteredClipping(radius=0.5),
            CenteredClipping(iterations=3),
        ]


all_rules = pytest.mark.parametrize("rule", fitted(), ids=repr)
some_rules = pytest.mark.parametrize(
    "rule",
    [CoordinateMedian(), Krum(), GeometricMedian(), CenteredClipping(), CenteredClipping(0.3, 2)],
    ids=repr,
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with Ranks(NUM_RANKS, tmp_path_factory.mktemp("ranks")) as started:
        yield started


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def same_everywhere(found):
    """Of the ranks' answers: all the same, to the bit."""
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert one is first is None or torch.equal(one, first)
    return found[0]


@all_rules
@pytest.mark.parametrize("dim", [1, 3, 10_007])
@pytest.mark.parametrize("liars", [0, 1])
def test_ranks_together_do_what_the_rule_does(ranks, rule, dim, liars):
    found = ranks(cases.all_reduce, rule, dim, liars=liars)
    state = rule.init(dim)
    for step in range(2):
        answer, state = rule.update(cases.messages(NUM_RANKS, dim, step, torch.float32), state)
        value, weights, scores, dropped, suspects = same_everywhere([a[step] for a, _ in found])
        if isinstance(rule, CoordinateRule):
            assert value.equal(answer.value)
        close(value, answer.value)
        close(scores, answer.scores, 1e-4)
        assert (weights is None) == (answer.weights is None)
        assert dropped.equal(answer.dropped)
        if dim > 3:  # on few columns, suspects of rules that compare are a matter of rounding
            assert suspects.equal(answer.suspects)
    for ours, theirs in zip(same_everywhere([last for _, last in found]), state, strict=True):
        close(ours, theirs)


@all_rules
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(ranks, rule, dtype):
    value, *_ = same_everywhere([a[0] for a, _ in ranks(cases.all_reduce, rule, 5_000, dtype, 1)])
    assert value.dtype == dtype
    expected = rule(cases.messages(NUM_RANKS, 5_000, 0, dtype))
    close(value, expected, 1e-7 if dtype == torch.float64 else torch.finfo(dtype).eps)


@all_rules
@pytest.mark.parametrize("liars", [0, 1])
def test_a_message_that_is_not_finite_is_dropped_and_named(ranks, rule, liars):
    found = ranks.outcomes(cases.all_reduce, rule, 500, bad=[2], rounds=1, liars=liars)
    rows = cases.messages(NUM_RANKS, 500, 0, torch.float32, [2])
    if rule.num_tolerated(NUM_RANKS) == 0:
        assert [(type(one), one.workers) for one in found] == [(TooManyByzantineError, [2])] * 4
        return
    value, _, scores, dropped, suspects = same_everywhere([a[0] for a, _ in found])
    close(value, rule(rows))
    assert dropped.tolist() == [False, False, True, False]
    assert suspects[2]
    assert scores[2] == torch.inf


@some_rules
def test_too_many_are_an_error_on_every_rank_and_the_group_goes_on(ranks, rule):
    found = ranks.outcomes(cases.all_reduce, rule, 500, bad=[0, 2])
    for one in found:
        assert isinstance(one, TooManyByzantineError)
        assert one.workers == [0, 2]
    ranks(cases.all_reduce, rule, 500)


def trains_as_alone(ranks, rule, net=None, ddp=None, tolerance=1e-5, **how):
    found = ranks(cases.train, rule, net or {}, ddp or {}, **how)
    how.pop("liars", None)
    gradients, weights, answers = cases.train_alone(rule, NUM_RANKS, net or {}, **how)
    for step, answer in enumerate(answers):
        ours = same_everywhere([(seen[0][step],) for seen in found])[0]
        close(ours.float(), gradients[step].float(), tolerance)
        number, *verdict = found[0][2][step]
        assert number == step
        same_everywhere([seen[2][step][2:] for seen in found])
        close(verdict[1], answer.scores, 1e-3 if tolerance < 1e-3 else 0.1)
        assert verdict[2].equal(answer.dropped)
    close(same_everywhere([(seen[1],) for seen in found])[0].float(), weights.float(), tolerance)
    assert found[0][4].tolist() == sum(a.suspects.long() for a in answers).tolist()
    return found[0], gradients


@some_rules
@pytest.mark.parametrize(
    "ddp",
    [
        {},
        {"bucket_cap_mb": 25},
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True},
    ],
    ids=str,
)
def test_ddp_trains_as_one_process_would(ranks, rule, ddp):
    (ours, *_), gradients = trains_as_alone(ranks, rule, ddp=ddp, steps=5)
    if isinstance(rule, CoordinateRule):
        assert all(one.equal(other) for one, other in zip(ours, gradients, strict=True))


@some_rules
def test_gradient_accumulation(ranks, rule):
    trains_as_alone(ranks, rule, micro=3)


@some_rules
@pytest.mark.parametrize("use", ["even", "none"])
def test_unused_parameters(ranks, rule, use):
    trains_as_alone(ranks, rule, ddp={"find_unused_parameters": True}, use=use)


@some_rules
def test_frozen_parameters(ranks, rule):
    trains_as_alone(ranks, rule, net={"frozen": True})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", [CoordinateMedian(), TrimmedMean(), CenteredClipping()], ids=repr)
def test_narrow_gradients(ranks, rule, dtype):
    trains_as_alone(ranks, rule, net={"dtype": dtype}, tolerance=0.02)


@some_rules
def test_parameters_of_several_dtypes(ranks, rule):
    trains_as_alone(ranks, rule, net={"second": torch.float64})


@some_rules
def test_a_gradient_that_is_not_finite(ranks, rule):
    (_, _, seen, _, suspected), _ = trains_as_alone(ranks, rule, bad=[3])
    assert [one[3].tolist()[3] for one in seen] == [False, True, False]
    assert suspected[3] >= 1


@some_rules
def test_too_many_reach_the_user_through_backward(ranks, rule):
    for one in ranks.outcomes(cases.train, rule, {}, {}, bad=[1, 2]):
        assert isinstance(one, TooManyByzantineError)
        assert one.workers == [1, 2]


@pytest.mark.parametrize(
    "rule",
    [
        CenteredClipping(),
        CenteredClipping(iterations=2),
        (Bucketing(2) >> TrimmedMean()).with_num_byzantine(0),
        Bucketing(2) >> CenteredClipping(),
    ],
    ids=repr,
)
def test_a_run_that_is_resumed_ends_where_it_would_have(ranks, rule):
    _, weights, seen, _, suspected = ranks(cases.train, rule, {}, {}, steps=5)[0]
    saved = ranks(cases.train, rule, {}, {}, steps=2)[0][3]
    _, resumed, after, _, counted = ranks(cases.train, rule, {}, {}, steps=3, saved=saved)[0]
    close(resumed, weights, 1e-6)  # DDP's first buckets are others, so sums have another order
    assert [one[0] for one in after] == [one[0] for one in seen[2:]] == [2, 3, 4]
    assert counted.equal(suspected)


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """Two groups of ranks: of 3, and of 4."""
    with Ranks(7, tmp_path_factory.mktemp("seven")) as started:
        yield started


# Exchanges: two of messages, one of digests, one of Gram matrices (or two: of who is finite, and of
# scores), two of the aggregate.
@pytest.mark.parametrize(
    ("rule", "at"),
    [*((Krum(2), at) for at in (3, 4, 5)), *((TrimmedMean(2), at) for at in (3, 4, 5, 6))],
    ids=repr,
)
@pytest.mark.parametrize("to", [range(7), [0, 6]], ids=["all", "some"])
def test_a_rank_that_lies_while_aggregating_is_outvoted(seven, rule, at, to):
    liars = {1: (at, list(to)), 5: (at, list(to))}
    found = seven(cases.with_liars, rule, 1000, liars, 1)
    expected = rule.explain(cases.messages(7, 1000, 0, torch.float32))
    for rank, (value, scores, outvoted) in enumerate(found):
        close(value, expected.value)
        close(scores, expected.scores)
        if rank in to:
            assert outvoted.nonzero().flatten().tolist() == [1, 5]


def test_without_votes_the_same_lie_is_believed(seven):
    rule = TrimmedMean(2)
    found = seven(cases.with_liars, rule, 1000, {1: (5, list(range(7)))}, 0)
    expected = rule(cases.messages(7, 1000, 0, torch.float32))
    assert not torch.allclose(found[0][0], expected)


@pytest.mark.parametrize("rule", [Krum(2), TrimmedMean(2)], ids=repr)
def test_a_rank_that_sends_different_messages_stops_everybody(seven, rule):
    for one in seven.outcomes(cases.with_liars, rule, 1000, {1: (1, [0])}, 1):
        assert isinstance(one, DecodeError)
        assert one.workers == [1]


@pytest.mark.parametrize("at", [3, 5])
def test_a_group_without_a_majority_stops_everybody(seven, at):
    everybody = list(range(7))
    liars = {0: (at, everybody), 1: (at, everybody)}  # who tell different lies
    for one in seven.outcomes(cases.with_liars, Krum(2), 1000, liars, 1):
        assert isinstance(one, DecodeError)
        assert one.workers == [0, 1, 2]
    seven(cases.with_liars, Krum(2), 1000, {}, 1)


@pytest.mark.parametrize("rule", [CoordinateMedian(), CenteredClipping()], ids=repr)
@pytest.mark.parametrize("how", [cases.KILL, cases.STOP], ids=["killed", "stopped"])
def test_the_others_do_not_hang_when_a_rank_is_lost(tmp_path, rule, how):
    with Ranks(3, tmp_path, timeout_s=4.0) as three:
        three.start(cases.die, rule, 2, how)
        for rank in (0, 1):
            error = three.answer(rank, timeout_s=30.0)
            assert isinstance(error, RankLostError), error
            assert set(error.ranks) <= {0, 1, 2} - {rank}
