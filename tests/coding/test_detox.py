"""DETOX: groups vote, and rules aggregate what they agree on."""

import warnings
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.aggregation import (
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MultiKrum,
    TrimmedMean,
)
from phalanx.coding import Detox
from phalanx.coding.hierarchy import Hierarchy
from phalanx.errors import DecodeError

WIDE = Detox(45, num_byzantine=5, group_size=3, num_buckets=5)


def gradients_for(code, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3.0 + torch.randn(code.num_partitions, dim, generator=generator)


def messages_of(code, dim=8, seed=0):
    return code.encode_all([gradients_for(code, dim, seed)])


def named(decoded):
    return decoded.suspects.nonzero().flatten().tolist()


def suspected(decoded):
    return (decoded.suspects | decoded.outliers).nonzero().flatten().tolist()


def corrupted(code, bad):
    """Groups of which the majority is bad, counted by hand."""
    return sum(len(bad & set(group)) > len(group) // 2 for group in code.groups)


def test_groups_cut_the_workers_and_change_every_round():
    code = Detox(17, num_byzantine=3, group_size=3, seed=2)
    assert [len(group) for group in code.groups] == [3, 3, 3, 3, 5]
    for step in range(5):
        assert sorted(sum(code.at(step).groups, ())) == list(range(17))
    assert len({code.at(step).groups for step in range(5)}) == 5
    assert len({replace(code, seed=seed).groups for seed in range(5)}) == 5
    fixed = replace(code, regroup=False)
    assert fixed.at(4).groups == code.groups


def test_every_worker_computes_one_partition_and_every_partition_r_workers():
    code = Detox(45, num_byzantine=5, group_size=5)
    assert code.redundancy == 5
    assert (code.assignment.sum(dim=1) == 1).all()
    assert (code.assignment.sum(dim=0) == 5).all()


def test_without_liars_means_of_means_are_the_mean(subtests):
    for num_buckets in [None, 1, 3, 5]:
        with subtests.test(num_buckets=num_buckets):
            code = Detox(45, num_byzantine=0, num_buckets=num_buckets, outer=Mean())
            gradients = gradients_for(code)
            for step in range(3):
                decoded = code.at(step).decode(code.at(step).encode_all([gradients]))
                torch.testing.assert_close(
                    decoded.gradient, gradients.mean(dim=0), rtol=1e-6, atol=1e-6
                )
                assert named(decoded) == []


@pytest.mark.filterwarnings("ignore:Krum's guarantee")
@pytest.mark.parametrize(
    ("inner", "outer", "num_buckets"),
    [
        (Mean(), CoordinateMedian(), None),
        (Mean(), CoordinateMedian(), 5),
        (Mean(), GeometricMedian(), 4),
        (Mean(), CenteredClipping(), 3),
        (MultiKrum(1), Mean(), 2),
        (Mean(), Bulyan(1), None),
    ],
    ids=repr,
)
@settings(max_examples=8)
@given(data=st.data())
def test_liars_that_win_no_group_change_no_bit(inner, outer, num_buckets, data):
    code = Detox(
        35, 4, 3, num_buckets, inner=inner, outer=outer, seed=data.draw(st.integers(0, 99))
    )
    code = code.at(data.draw(st.integers(0, 99)))
    honest = messages_of(code)
    bad = [
        worker
        for group in code.groups
        for worker in data.draw(st.permutations(group))[
            : data.draw(st.integers(0, len(group) // 2))
        ]
    ]
    messages = honest.clone()
    for worker in bad:
        messages[worker] = data.draw(st.sampled_from([torch.nan, torch.inf, -100.0, 1e30, 0.0]))
    decoded = code.decode(messages)
    assert decoded.gradient.equal(code.decode(honest).gradient)
    assert set(bad) <= set(suspected(decoded))
    assert len(bad) > 4 or set(named(decoded)) <= set(bad)


def test_the_expected_number_of_corrupted_groups(subtests):
    cases = [
        (45, 5, 3, 0.433),
        (45, 5, 5, 0.0589),
        (45, 9, 3, 1.459),
        (45, 9, 5, 0.424),
        (120, 12, 5, 0.167),
    ]
    for num_workers, num_byzantine, group_size, expected in cases:
        with subtests.test(
            num_workers=num_workers,
            num_byzantine=num_byzantine,
            group_size=group_size,
            expected=expected,
        ):
            code = Detox(num_workers, num_byzantine, group_size)
            assert code.expected_corrupted_groups == pytest.approx(expected, abs=6e-4)


@pytest.mark.filterwarnings("ignore:.* on average")
def test_random_groups_are_corrupted_as_often_as_the_formula_says(subtests):
    for shape in [(45, 9, 3), (47, 9, 5), (16, 5, 3)]:
        with subtests.test(shape=shape):
            code, bad = (
                Detox(*shape),
                set(range(shape[1])),
            )  # who is bad does not depend on the draw
            draws = torch.tensor([corrupted(code.at(step), bad) for step in range(1500)]).double()
            error = draws.std() / len(draws) ** 0.5
            assert abs(draws.mean() - code.expected_corrupted_groups) <= 3 * error
            assert draws.max() <= code.max_corrupted_groups


@pytest.mark.filterwarnings("ignore:.* on average")
def test_the_worst_case_is_as_many_groups_as_majorities_can_be_filled(subtests):
    for q, r, worst in [(5, 3, 2), (9, 3, 4), (9, 5, 3), (1, 3, 0), (4, 1, 4)]:
        with subtests.test(q=q, r=r, worst=worst):
            code = Detox(45, q, r)
            assert code.max_corrupted_groups == worst
            bad = {worker for group in code.groups for worker in group[: r // 2 + 1]}
            bad = set(
                sorted(bad, key=lambda w: next(i for i, g in enumerate(code.groups) if w in g))[:q]
            )
            assert corrupted(code, bad) == worst


def test_a_group_won_by_liars_meets_the_outer_rule():
    code = WIDE.at(3)
    messages = messages_of(code)
    messages[list(code.groups[4])] = -1e6
    decoded = code.decode(messages)
    assert (decoded.gradient - gradients_for(code).mean(dim=0)).norm() < 3
    assert set(code.groups[4]) <= set(suspected(decoded))
    assert named(decoded) == []  # the bound on lies is not spent: any of them may be honest
    apart = replace(code, num_buckets=None).decode(messages)
    assert suspected(apart) == list(code.groups[4])


def test_the_rules_are_told_what_may_be_corrupted():
    rules = Hierarchy(Mean(), Krum(0), num_buckets=None).with_num_byzantine(15, 4)
    assert rules.outer == Krum(4)  # a mean survives nothing: every corrupted group is a bucket
    rules = Hierarchy(MultiKrum(0), Krum(0), num_buckets=1).with_num_byzantine(15, 4)
    assert (rules.inner, rules.outer) == (MultiKrum(4), Krum(0))  # nothing passes the inner rule
    rules = Hierarchy(CoordinateMedian(), TrimmedMean(0), num_buckets=5).with_num_byzantine(15, 4)
    assert rules.inner == CoordinateMedian()  # survives 1 of the 3 in a bucket, so it takes 2
    assert rules.outer == TrimmedMean(2)
    assert (
        Hierarchy(Mean(), CoordinateMedian(), 5).with_num_byzantine(15, 4).outer
        == CoordinateMedian()
    )
    with pytest.raises(ValueError, match="inner must survive 4 corrupted of 3 groups in a bucket"):
        Hierarchy(Krum(1), Mean(), num_buckets=5).with_num_byzantine(15, 4)
    assert Detox(45, 9, 5, outer=Krum(1), num_corrupted=1).num_corrupted == 1


def test_buckets_are_as_equal_as_can_be():
    assert Hierarchy(Mean(), Mean(), 4).sizes(15) == [4, 4, 4, 3]
    assert Hierarchy(Mean(), Mean(), None).sizes(3) == [1, 1, 1]
    assert Hierarchy(Mean(), Mean(), 4).sizes(2) == [1, 1]


def test_a_group_without_a_winner_is_left_out():
    code = Detox(15, num_byzantine=3, outer=Mean())
    messages, arrived = messages_of(code), torch.ones(15, dtype=torch.bool)
    rest = gradients_for(code)[1:].mean(dim=0)
    first, second, third = code.groups[0]
    messages[first] = -100.0
    messages[second] = 7.0
    quarrel = code.decode(messages)  # three opinions: who of them is right, nobody can tell
    torch.testing.assert_close(quarrel.gradient, rest)
    assert suspected(quarrel) == [first, second, third]
    assert named(quarrel) == []
    arrived[[first, second]] = False
    alone = code.decode(messages, arrived)  # one voice wins no group of three: a liar could
    torch.testing.assert_close(alone.gradient, rest)
    assert named(alone) == []


def test_lost_messages_do_not_help_liars_to_win():
    code = Detox(15, num_byzantine=3)
    messages, arrived = messages_of(code), torch.ones(15, dtype=torch.bool)
    first, second, liar = code.groups[2]
    messages[liar] = 1e6
    arrived[[first, second]] = False
    assert code.decode(messages, arrived).gradient.abs().max() < 100


def test_winners_that_are_not_finite_count_as_corrupted_groups():
    code = Detox(15, num_byzantine=3)  # wins one group at most
    messages = messages_of(code)
    messages[list(code.groups[1][:2])] = torch.nan
    decoded = code.decode(messages)
    assert decoded.gradient.isfinite().all()
    assert named(decoded) == list(code.groups[1][:2])
    assert suspected(decoded) == list(code.groups[1])
    messages[list(code.groups[3][:2])] = torch.inf
    with pytest.raises(DecodeError, match="the winners of 2 groups are not finite") as caught:
        code.decode(messages)
    assert caught.value.workers == sorted(code.groups[1] + code.groups[3])


def test_too_few_groups_for_the_rules_are_an_error_with_names():
    code = Detox(21, num_byzantine=3, outer=Krum(1))
    messages, arrived = messages_of(code), torch.ones(21, dtype=torch.bool)
    lost = [worker for group in code.groups[:5] for worker in group]
    arrived[lost] = False
    with pytest.raises(DecodeError, match="outer must survive 1 corrupted of 2 buckets") as caught:
        code.decode(messages, arrived)
    assert caught.value.workers == sorted(lost)


def test_an_outer_rule_remembers_and_the_state_counts_the_rounds():
    code = Detox(15, 3, outer=CenteredClipping(radius=0.5))
    state = code.init(8)
    gradients = []
    for step in range(4):
        assert int(state[0]) == step
        decoded, state = code.update(code.at(step).encode_all([gradients_for(code)]), None, state)
        gradients.append(decoded.gradient)
    assert state[1].equal(gradients[-1])
    steps = [(after - before).norm() for before, after in pairwise(gradients)]
    assert max(steps) <= 0.5 + 1e-5
    assert gradients[-1].norm() > gradients[0].norm()


def test_replicas_that_differ_in_the_last_bits_agree_within_the_tolerance():
    code = Detox(15, 3, tolerance=1e-3)
    messages = messages_of(code) * (1 + 1e-5 * torch.randn(15, 1, generator=torch.Generator()))
    messages[4] *= -1
    decoded = code.decode(messages)
    assert suspected(decoded) == [4]
    assert named(replace(code, num_byzantine=1).decode(messages)) == [4]
    assert 0 < decoded.residual < 1e-3
    with pytest.raises(DecodeError, match="no group has a winner"):
        replace(code, tolerance=0.0).decode(messages)


def test_few_buckets_for_the_corrupted_groups_to_expect_are_warned_of_once():
    with pytest.warns(UserWarning, match=r"win 1\.46 groups of 3 on average, a quarter of the 5"):
        code = Detox(45, num_byzantine=9, num_buckets=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code.at(1)
        code.update(messages_of(code), None, code.init(8))
        Detox(45, num_byzantine=9)
        Detox(45, num_byzantine=0, num_buckets=1)


def test_the_formula_is_a_count_of_sets():
    """Against all sets of liars of a small case."""
    code = Detox(7, num_byzantine=3, group_size=3, num_corrupted=0)
    sets = [set(one) for one in combinations(range(7), 3)]
    mean = sum(corrupted(code, one) for one in sets) / len(sets)
    assert code.expected_corrupted_groups == pytest.approx(mean)


def explanations(groups, messages, num_byzantine):
    """Every set of at most so many Byzantine workers that leaves each group of one mind."""
    workers = sorted(worker for group in groups for worker in group)
    for size in range(num_byzantine + 1):
        for bad in map(set, combinations(workers, size)):
            honest = [[worker for worker in group if worker not in bad] for group in groups]
            if all(len({messages[worker].item() for worker in one}) <= 1 for one in honest):
                yield bad


def test_named_is_who_is_byzantine_in_every_explanation(subtests):
    """Against the enumeration of all explanations, over messages of few values."""
    source = torch.Generator().manual_seed(0)
    for trial in range(25):
        code = Detox(9, int(torch.randint(1, 4, (), generator=source)), seed=trial)
        messages = torch.randint(0, 8, (9, 1), generator=source).clamp(max=3).float()
        arrived = torch.rand(9, generator=source) < 0.9
        groups = [[worker for worker in group if arrived[worker]] for group in code.groups]
        with subtests.test(trial=trial):
            found = list(explanations(groups, messages, code.num_byzantine))
            try:
                decoded = code.decode(messages, arrived)
            except DecodeError:
                continue
            assert named(decoded) == sorted(set.intersection(*found) if found else ())
            assert not (decoded.suspects & decoded.outliers).any()


def test_an_honest_minority_is_never_named():
    """Two Byzantine workers own a group of three; the bound lets them, so nothing is proven."""
    code = Detox(15, num_byzantine=3)
    messages = messages_of(code)
    *liars, honest = code.groups[0]
    messages[liars] = 7.0
    decoded = code.decode(messages)
    assert named(decoded) == []
    assert honest in suspected(decoded)
    messages[code.groups[1][0]] = -7.0  # three lie, two are outvoted: the third may be in hiding
    assert named(code.decode(messages)) == []
    messages = messages_of(code)
    alone = [group[1] for group in code.groups[:3]]
    messages[alone] = -7.0  # the bound is spent on who is outvoted
    assert named(code.decode(messages)) == sorted(alone)
