"""Laws of all attacks and of all schedules: one case per algorithm."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import concrete
from phalanx import attacks
from phalanx.aggregation import GeometricMedian
from phalanx.attacks import (
    AdversaryKnowledge,
    Attack,
    Constant,
    GaussianNoise,
    Schedule,
    Silence,
    WrongShape,
)

ABSOLUTE = (Constant, GaussianNoise)  # numbers of their own

few_examples = settings(max_examples=20)


def rows(seed, num_rows, dim=5, dtype=torch.float32):
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(one, other):
    return (one is None and other is None) or torch.equal(
        one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0)
    )


def test_the_room_lists_its_names_in_order():
    assert attacks.__all__ == sorted(attacks.__all__)


def nothing_that_came_in_is_overwritten(attack):
    honest, own = rows(0, 8), rows(1, 4)
    before = copy.deepcopy((honest, own))
    attack.messages(honest, 4, own=own)
    attack(honest, 4, own=own)
    attack(honest, 4)
    assert torch.equal(honest, before[0])
    assert torch.equal(own, before[1])


def dtype_and_shape_are_those_of_an_honest_message(attack):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for message in attack.messages(rows(0, 8, dtype=dtype), 4):
            assert (message is None) == isinstance(attack, Silence)
            if message is not None:
                assert message.dtype == dtype
                assert message.shape == ((6,) if isinstance(attack, WrongShape) else (5,))


@few_examples
@given(seed=st.integers(0, 2**32), num_byzantine=st.integers(0, 6))
def the_same_generator_gives_the_same_bits(attack, seed, num_byzantine):
    honest = rows(seed, 8)
    first, second = (
        attack.messages(honest, num_byzantine, generator=torch.Generator().manual_seed(seed))
        for _ in range(2)
    )
    assert len(first) == len(second) == num_byzantine
    assert all(same(*pair) for pair in zip(first, second, strict=True))


def nobody_byzantine_means_no_message(attack):
    assert attack.messages(rows(0, 8), 0) == []
    assert attack(rows(0, 8), 0).shape == (0, 5)
    assert attack(rows(0, 8, dtype=torch.float64), 0).dtype == torch.float64


def only_the_omniscient_read_the_honest_messages(attack):
    own = rows(1, 3)
    for rank in range(3):
        member = attack.member(rank)
        if not member.omniscient:
            messages = [
                member.messages(honest, 1, own=own[:1], generator=torch.Generator().manual_seed(0))
                for honest in (rows(2, 4), rows(3, 7))
            ]
            assert same(messages[0][0], messages[1][0])
    assert attack.omniscient == any(attack.member(rank).omniscient for rank in range(3))


def what_an_engine_asks_first(attack):
    assert isinstance(attack.sends, bool)
    assert isinstance(attack.relabels, bool)
    assert attack.delay_s >= 0
    assert attack.rounds_behind >= 0
    assert isinstance(attack.member(3), Attack)


def the_omniscient_say_that_they_need_an_honest_message(attack):
    member = attack.member(2)
    if member.omniscient:
        with pytest.raises(ValueError, match=r"honest must have at least 1 row for \w+, got none"):
            member.forge(torch.ones(3), None, 1)
        with pytest.raises(ValueError, match=r"honest must have at least 1 row for \w+, got none"):
            member.messages(rows(0, 0), 1, own=rows(1, 1))


@few_examples
@given(seed=st.integers(0, 2**32), num_honest=st.integers(1, 9))
def targets_keep_their_shape_and_classes(attack, seed, num_honest):
    targets = torch.randint(7, (num_honest,), generator=torch.Generator().manual_seed(seed))
    before = targets.clone()
    relabelled = attack.relabel(targets, 7)
    assert torch.equal(targets, before)
    assert relabelled.shape == targets.shape
    assert relabelled.dtype == targets.dtype
    assert ((relabelled >= 0) & (relabelled < 7)).all()
    assert attack.relabels or torch.equal(relabelled, targets)


def plans_remember_plain_tensors_and_repeat_themselves(attack):
    def three_rounds():
        memory, sent = {}, []
        for step in range(3):
            source = torch.Generator().manual_seed(step)
            view = AdversaryKnowledge(rows(step, 6), tuple(range(6)), 3, generator=source)
            planned, memory = attack.plans(view, [0, 1, 2], memory)
            assert list(planned) == [0, 1, 2]
            own = rows(9 + step, 1)[0]
            sent += [
                plan.forge(own, view.honest, 3, torch.Generator().manual_seed(rank))
                for rank, plan in planned.items()
                if plan.sends
            ]
        return memory, sent

    memory, sent = three_rounds()
    assert all(isinstance(value, torch.Tensor) for state in memory.values() for value in state)
    assert all(same(*pair) for pair in zip(sent, three_rounds()[1], strict=True))


def a_power_of_two_changes_nothing_but_the_scale(attack):
    """Nor do squares that over- or underflow silence the attack, or make its messages infinite."""
    if any(isinstance(attack.member(rank), ABSOLUTE) for rank in range(3)):
        return
    for dtype, exponents in {
        torch.float32: (-90, -60, 60, 100),
        torch.float64: (-900, -500, 500, 900),
    }.items():
        honest, own = rows(0, 8, dtype=dtype), rows(1, 3, dtype=dtype)

        def forged(scale, honest=honest, own=own):
            return attack.messages(
                honest * scale,
                3,
                own=own * scale,
                aggregate=GeometricMedian(),
                generator=torch.Generator().manual_seed(2),
            )

        for exponent in exponents:
            for one, other in zip(forged(1.0), forged(2.0**exponent), strict=True):
                if one is not None and one.isfinite().all():
                    torch.testing.assert_close(other * 2.0**-exponent, one, rtol=1e-4, atol=1e-4)


def bad_counts_are_refused(attack):
    with pytest.raises(ValueError, match="num_byzantine must be at least 0, got -1"):
        attack(rows(0, 8), -1)
    with pytest.raises(ValueError, match="own must have one row per Byzantine worker, got 2 for 3"):
        attack(rows(0, 8), 3, own=rows(1, 2))
    with pytest.raises(ValueError, match="own must be given when honest has no rows"):
        attack(rows(0, 0), 3)


@few_examples
@given(step=st.integers(0, 100), num_workers=st.integers(1, 50), seed=st.integers(0, 2**32))
def a_schedule_is_a_function_of_step_workers_and_seed(schedule, step, num_workers, seed):
    byzantine = schedule.byzantine(step, num_workers, seed)
    assert byzantine.shape == (num_workers,)
    assert byzantine.dtype == torch.bool
    assert byzantine.sum() <= 1
    assert torch.equal(byzantine, schedule.byzantine(step, num_workers, seed))


def pickles_to_its_equal(each):
    assert pickle.loads(pickle.dumps(each)) == each


LAWS = {
    Attack: (
        nothing_that_came_in_is_overwritten,
        dtype_and_shape_are_those_of_an_honest_message,
        the_same_generator_gives_the_same_bits,
        nobody_byzantine_means_no_message,
        only_the_omniscient_read_the_honest_messages,
        what_an_engine_asks_first,
        the_omniscient_say_that_they_need_an_honest_message,
        targets_keep_their_shape_and_classes,
        plans_remember_plain_tensors_and_repeat_themselves,
        a_power_of_two_changes_nothing_but_the_scale,
        bad_counts_are_refused,
        pickles_to_its_equal,
    ),
    Schedule: (
        a_schedule_is_a_function_of_step_workers_and_seed,
        pickles_to_its_equal,
    ),
}


@pytest.mark.parametrize(
    ("base", "kind"), [(base, kind) for base in LAWS for kind in concrete(attacks, base)]
)
def test_laws(base, kind, subtests):
    for law in LAWS[base]:
        with subtests.test(law.__name__):
            law(kind())
