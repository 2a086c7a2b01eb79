"""Ranks that were told different things, or are at different steps, say so before they go on."""

import pytest

from communication import agreement_cases as cases
from ddp.ranks import Ranks
from phalanx.errors import DisagreementError, RankLostError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with Ranks(3, tmp_path_factory.mktemp("ranks"), timeout_s=20.0) as started:
        yield started


@pytest.mark.parametrize("case", cases.DIFFER, ids=lambda case: case.__name__)
def test_ranks_that_are_told_different_things_name_who_and_what(ranks, case):
    for error in ranks.outcomes(case):
        assert isinstance(error, DisagreementError), error
        assert error.ranks == [1]
        with pytest.raises(ValueError, match=cases.DIFFER[case]):
            raise error
    assert [found[0] for found in ranks(cases.texts)] == [3] * 3  # the group is still in step


def test_what_differs_is_shown_in_few_words(ranks):
    for _, (first, odd), (second, lacking) in ranks(cases.texts):
        assert (first, odd) == (
            "ranks must agree, which [2] do not: a is 0 on [0, 1], 1 on [2]",
            [2],
        )
        assert lacking == [1]
        assert len(second) < 500
        assert "nothing on [1]" in second


def test_numbers_of_steps_are_compared(ranks):
    for rank, (text, odd) in enumerate(ranks(cases.numbers)):
        assert odd == ([0, 2] if rank == 1 else [1])
        assert "ranks must be at the same step" in text


@pytest.mark.parametrize("kind", ["compress", "aggregate"])
def test_a_hook_that_was_resumed_elsewhere_is_named(tmp_path, kind):
    with Ranks(3, tmp_path, timeout_s=10.0) as three:
        found = three.outcomes(cases.resumed_ddp, kind)
    assert [type(one) for one in found] == [DisagreementError] * 3
    assert [one.ranks for one in found] == [[1], [0, 2], [1]]


@pytest.mark.parametrize("wide", [True, False])
def test_a_node_that_was_resumed_elsewhere_is_named(tmp_path, wide):
    with Ranks(3, tmp_path, timeout_s=10.0) as three:
        found = three.outcomes(cases.resumed_gossip, wide)
    assert [type(one) for one in found] == [DisagreementError] * 3
    assert [one.ranks for one in found] == [[1], [0, 2], [1]]


def test_an_optimizer_that_was_resumed_elsewhere_is_named(tmp_path):
    with Ranks(3, tmp_path, timeout_s=10.0) as three:
        found = three.outcomes(cases.resumed_adam)
    assert [type(one) for one in found] == [DisagreementError] * 3


@pytest.mark.parametrize("make", ["gossip", "step", "adam"])
def test_a_rank_whose_gradients_overflow_once_loses_nobody(ranks, make):
    found = ranks(cases.scaled, make)
    assert all(one.isfinite().all() for one in found)
    if make == "adam":
        assert all(one.equal(found[0]) for one in found)


def test_a_rank_that_takes_fewer_steps_is_an_error_of_the_others(tmp_path):
    with Ranks(3, tmp_path, timeout_s=3.0) as three:
        found = three.outcomes(cases.ends_early)
    assert found[1] is None
    assert [type(found[rank]) for rank in (0, 2)] == [RankLostError] * 2
