"""What every gradient code promises."""

import itertools
import pickle
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from jaxtyping import TypeCheckError

from laws import concrete
from phalanx import coding
from phalanx.aggregation import CenteredClipping, GeometricMedian, Krum, Mean
from phalanx.coding import (
    ApproximateCode,
    BernoulliGradientCode,
    Code,
    CyclicRepetition,
    Detox,
    DracoCyclic,
    DracoRepetition,
    ErasureHead,
    FractionalRepetition,
    StochasticBlockCode,
)
from phalanx.coding.groups import check_messages
from phalanx.errors import DecodeError

OTHER_SHAPES = [
    DracoRepetition(num_workers=5, num_byzantine=0),
    DracoRepetition(num_workers=8, num_byzantine=1),
    DracoRepetition(num_workers=7, num_byzantine=1, partitions="group"),
    DracoRepetition(num_workers=9, num_byzantine=2, tolerance=1e-2),
    DracoCyclic(num_workers=5, num_byzantine=0),
    DracoCyclic(num_workers=7, num_byzantine=3),
    DracoCyclic(num_workers=8, num_byzantine=2),
    DracoCyclic(num_workers=9, num_byzantine=1, group_length=5),
    DracoCyclic(num_workers=9, num_byzantine=2, band="published"),
    DracoCyclic(num_workers=9, num_byzantine=2, arithmetic="field"),
    DracoCyclic(num_workers=8, num_byzantine=1, group_length=4, arithmetic="field"),
    Detox(num_workers=9, num_byzantine=0, outer=Mean()),
    Detox(num_workers=16, num_byzantine=2, num_buckets=3, regroup=False),
    Detox(num_workers=21, num_byzantine=2, outer=GeometricMedian(), tolerance=1e-2, seed=3),
    Detox(num_workers=7, num_byzantine=1, group_size=1, outer=CenteredClipping(), step=4),
    FractionalRepetition(num_workers=8, num_stragglers=2),
    FractionalRepetition(num_workers=5, num_stragglers=0),
    CyclicRepetition(num_workers=5, num_stragglers=0),
    CyclicRepetition(num_workers=7, num_stragglers=6),
    CyclicRepetition(num_workers=8, num_stragglers=2, group_length=8),
    CyclicRepetition(num_workers=5, num_stragglers=2, construction="random"),
    ErasureHead(num_workers=7, copies=2, rescale=False),
    ErasureHead(num_workers=6, copies=3, decoding="one-step"),
    ErasureHead(num_workers=6, copies=3, decoding="algorithmic"),
    BernoulliGradientCode(num_workers=9, decoding="one-step"),
    StochasticBlockCode(num_workers=9, rescale=True),
]
CODES = [kind() for kind in concrete(coding, Code)] + OTHER_SHAPES
AGAINST_LIARS = [code for code in CODES if hasattr(code, "num_byzantine")]
EXACT = [code for code in CODES if code.exact]


def kinds(codes):
    """One case per class of these codes."""
    return pytest.mark.parametrize("kind", dict.fromkeys(map(type, codes)))


def of(kind, codes=CODES):
    """The codes of one class."""
    return [code for code in codes if type(code) is kind]


every_kind = kinds(CODES)
every_exact_kind = kinds(EXACT)
every_robust_kind = kinds([code for code in AGAINST_LIARS if code.exact])
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Encoding rounds 2 s + 1 times, and decoding combines the rounded messages once more.
ACCURACY = {
    torch.float16: 3e-3,
    torch.bfloat16: 3e-2,
    torch.float32: 5e-7,
    torch.float64: 1e-12,
}


def gradients_for(code, dim=50, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(code.num_partitions, dim, generator=generator, dtype=torch.float64).to(dtype)


def encode_each(code, gradients):
    return torch.stack(
        [code.encode(worker, gradients[owned]) for worker, owned in enumerate(code.assignment)]
    )


def secret():
    return torch.Generator().manual_seed(1)


def sent(code, value):
    """A number as a Byzantine worker sends it."""
    return code.forged(torch.tensor(value))


def undisturbed(code, gradients):
    """What the code decodes when nobody lies and all arrive."""
    return code.decode(code.encode_all([gradients]), generator=secret()).gradient


def relative_error(found, expected):
    expected = expected.double()
    return ((found.double() - expected).norm() / expected.norm()).item()


def survives_one(code):
    """Whether any one worker may be missing."""
    return code.min_workers < code.num_workers or getattr(code, "num_byzantine", 0) > 0


def assert_within_error(decoded, gradients, rounding):
    """The gradient is the mean, up to rounding and up to what the decoder says that it may lack."""
    mean, norms = gradients.double().mean(0), gradients.double().norm(dim=1)
    off = (decoded.gradient.double() - mean).norm()
    assert off <= rounding * mean.norm() + decoded.error * norms.square().mean().sqrt()


def test_the_room_lists_its_names_in_order():
    assert coding.__all__ == sorted(coding.__all__)


@every_exact_kind
def test_decoding_gives_the_mean_of_the_gradients(kind, subtests):
    for code, dtype, dim in itertools.product(of(kind, EXACT), DTYPES, [1, 50]):
        with subtests.test(code=code, dtype=dtype, dim=dim):
            gradients = gradients_for(code, dim, dtype) + 1  # a mean that is not almost zero
            messages, state = encode_each(code, gradients), code.init(dim, dtype=dtype)
            assert messages.dtype == code.message_dtype(dtype)
            decoded, _ = code.update(messages, None, state, generator=secret())
            assert decoded.gradient.dtype == dtype
            assert decoded.gradient.shape == (dim,)
            assert_within_error(decoded, gradients, ACCURACY[dtype])
            assert not decoded.suspects.any()
            assert decoded.suspects.shape == (code.num_workers,)
            assert decoded.residual >= 0
            assert decoded.error == 0 or isinstance(code, ApproximateCode | DracoCyclic)


@every_kind
def test_encoding_together_is_encoding_one_by_one(kind, subtests):
    for code, size in itertools.product(of(kind), [1, 2, 4, 1000]):
        with subtests.test(code=code, size=size):
            gradients = gradients_for(code, dtype=torch.float64)
            together = code.encode_all(gradients.split(size))
            apart = encode_each(code, gradients)
            assert together.dtype == apart.dtype
            if isinstance(code, DracoRepetition | Detox):
                assert torch.equal(together, apart)
            else:
                assert relative_error(together, apart) <= 1e-14


@every_kind
def test_encode_all_wants_one_gradient_for_each_partition(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            gradients = gradients_for(code)
            needed = code.num_partitions
            rule = f"blocks must hold the gradients of {needed} partitions, got"
            for number in (0, needed - 1):
                with pytest.raises(ValueError, match=f"{rule} {number}"):
                    code.encode_all(gradients[:number].split(1))
            with pytest.raises(ValueError, match=f"{rule} {needed + 1}"):
                code.encode_all([gradients, gradients[:1]])


@every_kind
def test_encode_wants_one_gradient_for_each_partition_held(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            held = int(code.assignment[2].sum())
            with pytest.raises(
                ValueError, match=f"one row for each of the {held} partitions of worker 2"
            ):
                code.encode(2, torch.ones(held + 1, 3))


@every_kind
def test_the_assignment_says_who_computes_what(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            held = code.assignment
            assert held.dtype == torch.bool
            assert held.shape == (code.num_workers, code.num_partitions)
            assert held.any(dim=1).all()
            assert code.redundancy == pytest.approx(held.sum().item() / code.num_partitions)


@every_kind
def test_any_so_many_workers_are_enough_and_fewer_may_not_be(kind, subtests):
    """All sets of up to two missing workers, and random ones."""
    for code in of(kind):
        with subtests.test(code=code):
            generator = torch.Generator().manual_seed(0)
            numbers = range(code.num_workers)
            missing = [set(), *map(set, itertools.combinations_with_replacement(numbers, 2))]
            missing += [
                set(torch.randperm(code.num_workers, generator=generator)[:number].tolist())
                for number in numbers
            ]
            messages = code.encode_all([gradients_for(code)])
            refused = []
            for one in missing:
                arrived = torch.tensor([worker not in one for worker in numbers])
                if code.can_decode(arrived):
                    code.decode(messages, arrived, generator=secret())
                    continue
                refused.append(len(one))
                if not code.exact:  # what it gives then is no error, but is not the mean either
                    continue
                with pytest.raises(DecodeError):
                    code.decode(messages, arrived)
            assert all(code.num_workers - number < code.min_workers for number in refused)


@every_robust_kind
def test_the_assignment_meets_the_bound_of_redundancy(kind, subtests):
    for code in of(kind, EXACT):
        with subtests.test(code=code):
            held = code.assignment
            replicas = 2 * code.num_byzantine + 1
            if isinstance(code, DracoCyclic) or code.num_workers % replicas == 0:
                assert (held.sum(dim=0) == replicas).all()
            assert (held.sum(dim=0) >= replicas).all()
            if getattr(code, "partitions", "all") == "group":
                assert (held.sum(dim=1) == 1).all()
            else:
                assert (held.sum(dim=1) >= replicas).all()
                assert code.num_partitions == code.num_workers


@every_robust_kind
def test_groups_cut_the_workers_in_order(kind, subtests):
    for code in of(kind, EXACT):
        with subtests.test(code=code):
            assert [worker for group in code.groups for worker in group] == list(
                range(code.num_workers)
            )
            assert min(map(len, code.groups)) >= 2 * code.num_byzantine + 1


@every_kind
def test_nothing_that_came_in_is_overwritten(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            gradients = gradients_for(code)
            messages = code.encode_all([gradients])
            messages[1] = sent(code, float("nan")) if survives_one(code) else messages[1]
            arrived = torch.ones(code.num_workers, dtype=torch.bool)
            before = gradients.clone(), messages.clone(), arrived.clone()
            encode_each(code, gradients)
            code.encode_all(gradients.split(1))
            code.decode(messages, arrived)
            after = gradients, messages, arrived
            for one, other in zip(after, before, strict=True):
                assert torch.equal(one.nan_to_num(), other.nan_to_num())


@every_kind
def test_the_decoded_gradient_is_no_view_of_the_messages(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            messages = code.encode_all([gradients_for(code)])
            decoded = code.decode(messages)
            before = decoded.gradient.clone()
            messages.zero_()
            assert torch.equal(decoded.gradient, before)


@every_kind
def test_what_did_not_arrive_is_never_looked_at(kind, subtests):
    for code, garbage in itertools.product(of(kind), [float("nan"), float("inf"), 1e30, 0.0]):
        with subtests.test(code=code, garbage=garbage):
            if not survives_one(code):
                pytest.skip("survives nothing")
            if getattr(code, "group_size", 3) == 1:
                pytest.skip("what nobody repeats is lost")
            gradients = gradients_for(code)
            messages = code.encode_all([gradients])
            arrived = torch.ones(code.num_workers, dtype=torch.bool)
            arrived[1] = False
            messages[1] = sent(code, garbage)
            decoded = code.decode(messages, arrived, generator=secret())
            if code.exact:  # two more than repetition needs: only the cyclic codes round here
                assert_within_error(decoded, gradients, 1e-6)
            else:
                assert relative_error(decoded.gradient, undisturbed(code, gradients)) <= 1e-6
            assert not decoded.suspects.any()


@every_kind
def test_messages_that_are_not_finite_are_named(kind, subtests):
    for code, value, where in itertools.product(
        of(kind), [float("nan"), float("inf"), -float("inf")], [slice(None), slice(-1, None)]
    ):
        with subtests.test(code=code, value=value, where=where):
            if not survives_one(code):
                pytest.skip("survives nothing")
            gradients = gradients_for(code)
            messages = code.encode_all([gradients])
            messages[2, where] = sent(code, value)
            if getattr(code, "group_size", 3) == 1:
                pytest.skip("what nobody repeats is lost")
            decoded = code.decode(messages, generator=secret())
            named = decoded.suspects.nonzero().flatten().tolist()
            if code.exact:
                assert named == [2]
                assert_within_error(decoded, gradients, 1e-6)
            else:
                assert 2 in named
                assert relative_error(decoded.gradient, undisturbed(code, gradients)) <= 1e-6


@every_kind
def test_no_honest_worker_is_named_within_the_bound(kind, subtests):
    for code, seed in itertools.product(of(kind), range(8)):
        with subtests.test(code=code, seed=seed):
            source = torch.Generator().manual_seed(seed)
            messages = code.encode_all([gradients_for(code, seed=seed)])
            bad = torch.randperm(code.num_workers, generator=source)[: code.num_tolerated]
            forged = torch.randn(messages.shape, generator=source)
            forged[::2] = forged[0]  # some collude
            messages[bad] = (forged[bad] * 10.0 ** (seed % 4 - 1)).to(messages.dtype)
            try:
                decoded = code.decode(messages, generator=source)
            except DecodeError:
                assert not code.exact
                continue
            assert set(decoded.suspects.nonzero().flatten().tolist()) <= set(bad.tolist())
            if decoded.outliers is not None:
                assert not (decoded.outliers & decoded.suspects).any()


@every_kind
def test_honest_workers_whose_gradients_all_diverged_are_an_error(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            messages = code.forged(torch.full((code.num_workers, 2 * 50), float("nan")))
            with pytest.raises(DecodeError):
                code.decode(messages)


@every_kind
def test_nothing_to_learn_decodes_to_nothing(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            width = 2 * 50
            decoded = code.decode(code.forged(torch.zeros(code.num_workers, width)))
            assert not decoded.gradient.any()
            assert not decoded.suspects.any()
            empty = code.forged(torch.zeros(code.num_workers, code.width(0)))
            assert code.decode(empty).gradient.shape == (0,)


@every_kind
def test_silence_is_an_error_that_crosses_process_borders(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            messages = code.encode_all([gradients_for(code)])
            with pytest.raises(DecodeError) as caught:
                code.decode(messages, torch.zeros(code.num_workers, dtype=torch.bool))
            against_liars = code in AGAINST_LIARS
            assert caught.value.bound == (code.num_byzantine if against_liars else 0)
            lost = code.groups[0] if against_liars and code.exact else range(code.num_workers)
            assert caught.value.workers == list(lost)
            again = pickle.loads(pickle.dumps(caught.value))
            assert type(again) is DecodeError
            assert (str(again), again.workers, again.bound) == (
                str(caught.value),
                caught.value.workers,
                caught.value.bound,
            )


@every_kind
def test_one_row_and_one_flag_for_each_worker(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            for rows in (0, code.num_workers - 1, code.num_workers + 1):
                messages = torch.zeros(rows, 50, dtype=code.message_dtype(torch.float32))
                with pytest.raises(
                    ValueError, match=rf"messages must have shape \({code.num_workers},"
                ):
                    code.decode(messages, torch.ones(rows, dtype=torch.bool))


def test_shapes_are_checked_without_type_checkers_too():
    with pytest.raises(ValueError, match=r"messages must have shape \(5, width\), got \(5,\)"):
        check_messages(torch.zeros(5), torch.ones(5, dtype=torch.bool), 5)
    with pytest.raises(ValueError, match=r"arrived must have shape \(5,\), got \(4,\)"):
        check_messages(torch.zeros(5, 2), torch.ones(4, dtype=torch.bool), 5)


@every_kind
def test_every_round_has_a_code_of_the_same_kind(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            for step in (0, 1, 7):
                drawn = code.at(step)
                assert (drawn.num_workers, drawn.num_partitions) == (
                    code.num_workers,
                    code.num_partitions,
                )
                assert drawn.at(step) == drawn
                assert drawn.at(0) == code.at(0)
                assert drawn.assignment.equal(code.at(step).assignment)
            if code.exact:
                assert code.at(3) is code


@every_kind
def test_updating_decodes_the_rounds_one_after_the_other(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            gradients = gradients_for(code)
            state = code.init(gradients.shape[1])
            for step in range(3):
                drawn = code.at(step).informed(code.broadcast(state))
                messages = drawn.encode_all([gradients])
                decoded, state = code.update(messages, None, state, generator=secret())
                expected = undisturbed(drawn, gradients)
                remembers = isinstance(getattr(code, "outer", None), CenteredClipping) and step > 0
                assert decoded.gradient.equal(expected) != remembers
                assert not decoded.suspects.any() or not code.exact


@every_kind
def test_values_that_hash_and_pickle(kind, subtests):
    for code in of(kind):
        with subtests.test(code=code):
            code.decode(
                code.encode_all([gradients_for(code)])
            )  # what is remembered is no part of them
            again = pickle.loads(pickle.dumps(code))
            assert again == code
            assert hash(again) == hash(code)
            assert torch.equal(again.assignment, code.assignment)
            with pytest.raises(FrozenInstanceError):
                code.num_workers = 3


def test_the_bound_is_checked_at_once(subtests):
    for kind in dict.fromkeys(map(type, AGAINST_LIARS)):
        with subtests.test(kind=kind):
            with pytest.raises(ValueError, match="num_byzantine must be at least 0, got -1"):
                kind(num_workers=5, num_byzantine=-1)
            with pytest.raises(
                ValueError, match=r"num_byzantine must be below num_workers / 2, got 3 of 6"
            ):
                kind(num_workers=6, num_byzantine=3)
            with pytest.raises(
                ValueError, match=r"num_byzantine must be below num_workers / 2, got 0 of 0"
            ):
                kind(num_workers=0, num_byzantine=0)


def test_bad_arguments_are_refused(subtests):
    cases = [
        (DracoRepetition, "partitions", "some", "must be 'all' or 'group', got 'some'"),
        (DracoRepetition, "tolerance", -1e-6, "must be at least 0 and below 1, got -1e-06"),
        (DracoRepetition, "tolerance", 1.0, "must be at least 0 and below 1, got 1.0"),
        (DracoRepetition, "tolerance", float("nan"), "must be at least 0 and below 1, got nan"),
        (DracoCyclic, "group_length", 6, "must be from 2 num_byzantine [+] 1 = 7 to .* got 6"),
        (DracoCyclic, "group_length", 16, "must be from .* to num_workers = 15, got 16"),
        (DracoCyclic, "group_length", 0, "must be from .* to num_workers = 15, got 0"),
        (DracoCyclic, "band", "left", "must be 'centered' or 'published', got 'left'"),
        (DracoCyclic, "tolerance", -1.0, "must be at least 0, got -1.0"),
        (DracoCyclic, "tolerance", float("nan"), "must be at least 0, got nan"),
        (DracoCyclic, "max_error", -1.0, "must be at least 0, got -1.0"),
        (Detox, "group_size", 4, "must be odd, and from 1 to num_workers = 15, got 4"),
        (Detox, "group_size", 17, "must be odd, and from 1 to num_workers = 15, got 17"),
        (Detox, "num_buckets", 6, "must be from 1 to the 5 groups, got 6"),
        (Detox, "num_buckets", 0, "must be from 1 to the 5 groups, got 0"),
        (Detox, "num_corrupted", 6, "must be from 0 to the 5 groups, got 6"),
        (Detox, "num_corrupted", -1, "must be from 0 to the 5 groups, got -1"),
        (Detox, "inner", CenteredClipping(), "must be a rule without memory, got CenteredClip"),
        (Detox, "outer", Krum(1), "must survive 1 corrupted of 2 buckets: .* got 1 of 2"),
        (Detox, "tolerance", 1.0, "must be at least 0 and below 1, got 1.0"),
        (FractionalRepetition, "num_stragglers", -1, "at least 0 and below num_workers, got -1"),
        (FractionalRepetition, "num_stragglers", 15, "at least 0 and below num_workers, got 15"),
        (CyclicRepetition, "num_stragglers", 15, "at least 0 and below num_workers, got 15"),
        (CyclicRepetition, "group_length", 2, "must be from num_stragglers [+] 1 = 3 to .* got 2"),
        (CyclicRepetition, "group_length", 16, "must be from .* to num_workers = 15, got 16"),
        (CyclicRepetition, "construction", "best", "must be 'centered' or 'random', got 'best'"),
        (ErasureHead, "num_workers", 0, "must be at least 1, got 0"),
        (ErasureHead, "copies", 0, "must be from 1 to num_workers = 15, got 0"),
        (ErasureHead, "decoding", "slow", "must be 'one-step', 'optimal' or .*, got 'slow'"),
        (ErasureHead, "iterations", 0, "must be at least 1, got 0"),
        (ErasureHead, "max_error", -0.1, "must be at least 0, got -0.1"),
        (ErasureHead, "max_error", float("nan"), "must be at least 0, got nan"),
        (BernoulliGradientCode, "expected_load", 16, "must be from 1 to num_workers = 15, got 16"),
        (StochasticBlockCode, "cluster_size", 4, "must divide num_workers = 15, got 4"),
        (StochasticBlockCode, "inside", 1.5, "must obey 0 <= across <= inside <= 1"),
        (StochasticBlockCode, "across", 0.8, "must obey 0 <= across <= inside <= 1"),
    ]
    for kind, argument, value, rule in cases:
        with subtests.test(kind=kind, argument=argument, value=value, rule=rule):
            with pytest.raises((ValueError, TypeCheckError), match=argument) as caught:
                kind(**{argument: value} | ({"num_buckets": 2} if argument == "outer" else {}))
            assert isinstance(caught.value, TypeCheckError) or re.search(rule, str(caught.value))
