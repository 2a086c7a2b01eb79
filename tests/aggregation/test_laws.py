"""What every rule of the room obeys."""

import itertools
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import concrete
from phalanx import aggregation
from phalanx.aggregation import (
    ARC,
    Aggregator,
    Bucketing,
    Bulyan,
    CenteredClipping,
    ComparativeGradientElimination,
    CoordinateMedian,
    CoordinateRule,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MoNNA,
    NearestNeighborMixing,
    NormClipping,
    Resampling,
    SignMajority,
    TrimmedMean,
)
from phalanx.errors import TooManyByzantineError

COMPOSED = [
    NearestNeighborMixing() >> Krum(),
    NearestNeighborMixing() >> TrimmedMean(),
    NormClipping() >> Bulyan(),
    NormClipping() >> NearestNeighborMixing() >> GeometricMedian(),
    ARC() >> CoordinateMedian(),
    ARC() >> NearestNeighborMixing() >> CenteredClipping(),
    Bucketing(2) >> NearestNeighborMixing() >> GeometricMedian(),
    Bucketing(2) >> CoordinateMedian(),
    Resampling(2) >> TrimmedMean(),
]
RULES = [rule() for rule in concrete(aggregation, Aggregator)] + COMPOSED
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = [(12, 40), (12, 8_000), (50, 1_500)]  # in float64; in float32 blocks; more than a network


def parts(rule):
    """The rule, and what goes before it."""
    return {
        type(part) for part in (rule, *getattr(rule, "before", ()), getattr(rule, "rule", rule))
    }


def found(*kinds):
    """The rules for which a law holds: those without parts of these kinds."""
    return [rule for rule in RULES if not parts(rule) & set(kinds)]


def without(*kinds):
    """One case per rule for which a law holds."""
    return pytest.mark.parametrize("rule", found(*kinds), ids=repr)


SHRINKS = (NormClipping, ARC, CenteredClipping, SignMajority)  # towards the origin or a centre
DRAWS = (Bucketing, Resampling)

all_rules = without()
robust_rules = without(Mean)


def messages(num_workers, dim, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_workers, dim, generator=generator, dtype=torch.float64).to(dtype)


def with_bound(rule, num_byzantine):
    """The rule told to tolerate so many, if it can be told."""
    return rule.with_num_byzantine(num_byzantine)


def close(one, other, tolerance=1e-5):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@without(MoNNA, Bulyan, *DRAWS)  # Bulyan ends in Krum with one neighbour, where pairs tie
def test_the_order_of_the_workers_does_not_matter(rule, subtests):
    for size in SIZES:
        with subtests.test(size=size):
            gradients = messages(*size)
            order = torch.randperm(size[0], generator=torch.Generator().manual_seed(1))
            one, other = rule.explain(gradients), rule.explain(gradients[order])
            close(other.value, one.value)
            close(other.scores, one.scores[order])
            assert torch.equal(other.suspects, one.suspects[order])


@without(ComparativeGradientElimination, *SHRINKS)
def test_moves_with_the_messages(rule, subtests):
    for size in SIZES:
        with subtests.test(size=size):
            gradients, shift = messages(*size), messages(1, size[1], seed=5)
            close(rule(gradients + shift), rule(gradients) + shift[0], 1e-4)


@without(SignMajority)
def test_scales_with_the_messages(rule, subtests):
    for size in SIZES:
        gradients = messages(*size)
        value = rule(gradients)
        for scale in (1e-25, 1e-3, 64.0, 1e25):
            with subtests.test(size=size, scale=scale):
                close(rule(gradients * scale) / scale, value, 1e-4)


def with_a_lie(dtype, lie, size=(12, 40)):
    """Messages of length about 6, one of them `2^lie` times as long and elsewhere."""
    gradients = messages(*size, dtype=dtype)
    gradients[4] = (messages(1, size[1], seed=9, dtype=dtype) + 1) * 2.0**lie
    return gradients


RANGES = [
    (torch.float64, (-300, -77, 150, 300), (-500, -40, 0, 20, 130, 259, 400, 700)),
    (torch.float32, (-60, -31, 30, 60), (-60, 0, 20, 45, 64)),
]


@without(SignMajority)
def test_a_power_of_two_changes_nothing_but_the_scale(rule, subtests):
    for dtype, scales, lies in RANGES:
        for lie, exponent in itertools.product(lies, scales):
            with subtests.test(dtype=dtype, lie=lie, exponent=exponent):
                gradients, scale = with_a_lie(dtype, lie), 2.0**exponent
                one, other = rule.explain(gradients), rule.explain(gradients * scale)
                assert torch.equal(other.value, one.value * scale)
                assert torch.equal(other.suspects, one.suspects)
                if one.weights is not None:
                    assert torch.equal(other.weights, one.weights)
                told = one.scores.isfinite() & other.scores.isfinite()
                lengths, squares = one.scores[told] * scale, one.scores[told] * scale**2
                assert other.scores[told].tolist() in (lengths.tolist(), squares.tolist())


@robust_rules
def test_no_lie_of_any_size_carries_the_answer_away(rule, subtests):
    """Nor does the scale of all of them: what overflows is no reason to take the mean."""
    rule = with_bound(rule, 1) if rule.num_tolerated(12) < 1 else rule
    for dtype, scales, lies in RANGES:
        for lie, exponent in itertools.product(lies, (*scales, 0)):
            with subtests.test(dtype=dtype, lie=lie, exponent=exponent):
                value = rule(with_a_lie(dtype, lie) * 2.0**exponent).double() * 2.0**-exponent
                assert value.norm() < 20 or SignMajority in parts(rule)
    for exponent in (-900, -560, 520, 900):  # squares of honest messages are no numbers
        with subtests.test(exponent=exponent):
            gradients = messages(12, 40, dtype=torch.float64)
            gradients[4] *= 2.0**90
            value = rule(gradients * 2.0**exponent) * 2.0**-exponent
            if SignMajority not in parts(rule):
                torch.testing.assert_close(value, rule(gradients))


@without(SignMajority)
def test_equal_messages_give_that_message(rule, subtests):
    for size, scale in itertools.product(SIZES, [0.0, 1.0, 1e30]):
        with subtests.test(size=size, scale=scale):
            gradients = messages(1, size[1]).expand(size[0], -1) * scale
            answer = rule.explain(gradients)
            close(answer.value, gradients[0])


@all_rules
def test_narrow_dtypes_are_summed_in_a_wider_one(rule, subtests):
    for dtype, size in itertools.product(DTYPES, SIZES):
        with subtests.test(dtype=dtype, size=size):
            gradients = messages(*size, dtype=dtype)
            value = rule(gradients)
            assert value.dtype == dtype
            exact = rule(gradients.double())
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(value.double(), exact, rtol=unit, atol=max(unit / 100, 1e-6))


def test_gives_back_the_kind_that_was_given(subtests):
    for rule in found():
        with subtests.test(rule=rule):
            gradients = messages(12, 12)
            flat = rule(gradients)
            array = rule(gradients.numpy())
            assert isinstance(array, np.ndarray)
            assert array.dtype == np.float32
            assert np.array_equal(array, flat.numpy())
            frozen = gradients.numpy().copy()
            frozen.flags.writeable = False
            assert np.array_equal(rule(frozen), array)
            assert torch.equal(rule([row.reshape(3, 4) for row in gradients]), flat.reshape(3, 4))
            arrays = rule([row.reshape(3, 4).numpy() for row in gradients])
            assert np.array_equal(arrays, flat.reshape(3, 4).numpy())
            dicts = rule([{"weight": row[:8].reshape(2, 4), "bias": row[8:]} for row in gradients])
            assert list(dicts) == ["weight", "bias"]
            assert torch.equal(dicts["weight"], flat[:8].reshape(2, 4))
            assert torch.equal(dicts["bias"], flat[8:])


def test_reads_any_memory_layout(subtests):
    for rule in found():
        with subtests.test(rule=rule):
            gradients = messages(12, 12)
            close(rule(gradients.T.contiguous().T), rule(gradients))
            close(rule(gradients.repeat_interleave(2, dim=1)[:, ::2]), rule(gradients))
            assert not rule(gradients.clone().requires_grad_()).requires_grad


@all_rules
def test_leaves_its_input_alone(rule, subtests):
    for size in SIZES:
        with subtests.test(size=size):
            gradients = messages(*size)
            before = gradients.clone()
            value = rule(gradients)
            rule.explain(gradients)
            value.zero_()
            assert torch.equal(gradients, before)


@all_rules
def test_explains_what_it_answers(rule, subtests):
    for size in SIZES:
        with subtests.test(size=size):
            gradients = messages(*size)
            answer = rule.explain(gradients)
            assert torch.equal(answer.value, rule(gradients))
            assert not answer.dropped.any()
            assert answer.scores.dtype == torch.float64
            if answer.weights is not None:
                assert answer.weights.dtype == torch.float64
                if not parts(rule) & set(SHRINKS):
                    assert answer.weights.sum().item() == pytest.approx(1.0)
                close(answer.value.double(), answer.weights @ gradients.double())


def test_pickles(subtests):
    for rule in found():
        with subtests.test(rule=rule):
            assert pickle.loads(pickle.dumps(rule)) == rule


def test_a_round_with_state_answers(subtests):
    for rule in found():
        with subtests.test(rule=rule):
            gradients = messages(12, 12)
            state = rule.init(12)
            answer, state = rule.update(gradients, state)
            assert answer.value.shape == (12,)
            assert all(isinstance(part, torch.Tensor) for part in state)


def test_works_at_the_smallest_sizes(subtests):
    for rule, dim, num_workers in itertools.product(found(), [0, 1, 2], [1, 2, 5]):
        with subtests.test(rule=rule, dim=dim, num_workers=num_workers):
            gradients = messages(num_workers, dim)
            answer = with_bound(rule, 0).explain(gradients)
            assert answer.value.shape == (dim,)
            if num_workers == 1:
                alone = gradients[0].sign() if isinstance(rule, SignMajority) else gradients[0]
                assert torch.equal(answer.value, alone)


def test_refuses_unfit_input(subtests):
    unfits = [
        [],
        torch.empty(0, 3),
        torch.zeros(3),
        torch.zeros(2, 3, 4),
        torch.zeros(5, 3, dtype=torch.int64),
        np.zeros((5, 3), dtype=np.int32),
        [torch.zeros(3), torch.zeros(4)],
        [torch.zeros(3), torch.zeros(3).double()],
        [torch.zeros(3), np.zeros(3)],
        [{"a": torch.zeros(3)}, {"b": torch.zeros(3)}],
        [{"a": torch.zeros(3)}, {"a": torch.zeros(4)}],
        [{}, {}],
        "gradients",
        3.0,
    ]
    for rule, unfit in itertools.product(found(), unfits):
        refused = pytest.raises(ValueError, match="gradients must")
        with subtests.test(rule=rule, unfit=unfit), refused:
            rule(unfit)


@robust_rules
def test_drops_what_is_not_finite(rule, subtests):
    rule = with_bound(rule, 2)
    for size, dtype in itertools.product(SIZES, [torch.float16, torch.float32]):
        sent = messages(*size, dtype=dtype)
        rest = torch.arange(size[0]) != 3
        alone = with_bound(rule, 1)(sent[rest])
        for poison, where in itertools.product([torch.nan, -torch.inf], [slice(None), -1]):
            with subtests.test(size=size, dtype=dtype, poison=poison, where=where):
                gradients = sent.clone()
                gradients[3, where] = poison
                answer = rule.explain(gradients)
                close(answer.value, alone, 1e-3 if dtype.itemsize == 2 else 1e-5)
                assert torch.equal(rule(gradients), answer.value)
                assert answer.dropped.tolist() == (~rest).tolist()
                assert answer.suspects[3]
                assert answer.scores[3] == torch.inf
                if answer.weights is not None:
                    assert answer.weights[3] == 0


def test_too_many_that_are_not_finite_are_named(subtests):
    for rule in found():
        with subtests.test(rule=rule):
            gradients = messages(12, 12)
            gradients[[1, 4, 5]] = torch.nan
            with pytest.raises(TooManyByzantineError, match=r"\[1, 4, 5\]") as error:
                with_bound(rule, 2)(gradients)
            assert error.value.workers == [1, 4, 5]
            assert error.value.bound == with_bound(rule, 2).num_tolerated(12)


# MoNNA trusts a Byzantine worker here; the last three do not see sizes any more.
@without(Mean, MoNNA, SignMajority, NormClipping, ARC)
def test_a_finite_lie_is_not_dropped_and_does_not_matter(rule, subtests):
    for size, scale, dtype in itertools.product(
        SIZES, [1e6, 1e30, 3e38], [torch.bfloat16, torch.float32]
    ):
        with subtests.test(size=size, scale=scale, dtype=dtype):
            honest = messages(*size, dtype=dtype)
            gradients = honest.clone()
            gradients[0] = (gradients[0].clamp(-1, 1) * scale).to(dtype)
            gradients[1, -1] = scale  # looks honest until the last coordinate
            answer = with_bound(rule, 2).explain(gradients)
            assert not answer.dropped.any()
            assert answer.suspects[:2].all()
            assert (answer.value - honest.mean(dim=0)).norm() < 2 * size[1] ** 0.5
            close(with_bound(rule, 2)(gradients), answer.value)


@all_rules
def test_every_dtype_stands_every_kind_of_message(rule, subtests):
    """Poison, the largest numbers, all equal, and the smallest shapes; the answer is finite."""
    for dtype in DTYPES:
        with subtests.test(dtype=dtype):
            rule, plain = with_bound(rule, 2), messages(12, 7, dtype=dtype)
            before = plain.clone()
            for value in (torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max, -1e4, 0.0):
                gradients = plain.clone()
                gradients[3], gradients[8, -1] = value, value
                given = gradients.clone()
                if not np.isfinite(value) and isinstance(rule, Mean):
                    with pytest.raises(TooManyByzantineError):
                        rule(gradients)
                    continue
                answer = rule.explain(gradients)
                assert torch.isfinite(answer.value).all()
                assert answer.value.dtype == dtype
                assert answer.dropped.sum() == (0 if np.isfinite(value) else 2)
                assert torch.equal(gradients.nan_to_num(), given.nan_to_num())
            for shape in ((12, 1), (12, 0), (1, 7), (1, 1), (1, 0)):
                few = plain[: shape[0], : shape[1]]
                alone = with_bound(rule, 0 if shape[0] == 1 else 2).explain(few)
                assert alone.value.shape == shape[1:]
                assert torch.isfinite(alone.value).all()
            equal = plain[:1].expand(12, -1)
            if not parts(rule) & {SignMajority}:
                unit = torch.finfo(dtype).eps
                torch.testing.assert_close(rule(equal), plain[0], rtol=4 * unit, atol=4 * unit)
            assert torch.equal(plain, before)
            with pytest.raises(ValueError, match="gradients must have shape"):
                rule(torch.empty(0, 7, dtype=dtype))


@without(*SHRINKS)
def test_a_common_offset_does_not_drown_the_spread(rule, subtests):
    """A thousand times the spread: judged as in float64, and the value to the digits left."""
    for size in SIZES:
        with subtests.test(size=size):
            gradients = (messages(*size) + 1e3 * messages(1, size[1], seed=5)).contiguous()
            rounded, exact = rule.explain(gradients), rule.explain(gradients.double())
            assert (rounded.value - exact.value).norm() < 1e-6 * gradients[0].norm()
            assert torch.equal(rounded.suspects, exact.suspects)
            torch.testing.assert_close(rounded.scores, exact.scores, rtol=1e-3, atol=0)


def test_num_byzantine_is_checked(subtests):
    for rule in found(Mean, *DRAWS):
        with subtests.test(rule=rule):
            with pytest.raises(ValueError, match="num_byzantine must be at least 0, got -1"):
                with_bound(rule, -1)
            with pytest.raises(
                ValueError, match="num_byzantine must be below num_workers / 2, got 2 of 4"
            ):
                with_bound(rule, 2)(messages(4, 3))


def kappa(rule, num_workers, num_byzantine):
    """The published robustness coefficient; None where there is none."""
    rho = num_byzantine / (num_workers - 2 * num_byzantine)
    if [type(part) for part in getattr(rule, "before", ())] == [NearestNeighborMixing]:
        inner = kappa(rule.rule, num_workers, num_byzantine)
        return inner and 8 * num_byzantine / (num_workers - num_byzantine) * (inner + 1)
    return {
        "Krum": 6 * (1 + rho),
        "GeometricMedian": 4 * (1 + rho) ** 2,
        "CoordinateMedian": 4 * (1 + rho) ** 2,
        "TrimmedMean": 6 * rho * (1 + rho),
    }.get(type(rule).__name__)


MIXED = [
    NearestNeighborMixing() >> CoordinateMedian(),
    NearestNeighborMixing() >> GeometricMedian(),
]


@pytest.mark.parametrize("rule", [r for r in RULES + MIXED if kappa(r, 7, 2)], ids=repr)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_byzantine=st.integers(1, 3),
    dim=st.sampled_from([1, 2, 8]),
    lie=st.sampled_from([0.0, -1.0, 1.5, 10.0, -1e4]),
    spread=st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_robust_as_published(rule, seed, num_byzantine, dim, lie, spread):
    """|F(X) - mean_S|^2 <= kappa var_S for every set S of n - f workers."""
    num_workers = 2 * num_byzantine + 3
    gradients = messages(num_workers, dim, seed, torch.float64)
    bad = gradients[:num_byzantine]
    bad.mul_(spread).add_(lie * (1 + gradients[num_byzantine:].mean(dim=0)))
    value = with_bound(rule, num_byzantine)(gradients)
    bound = kappa(rule, num_workers, num_byzantine)
    for chosen in itertools.combinations(range(num_workers), num_workers - num_byzantine):
        honest = gradients[list(chosen)]
        variance = (honest - honest.mean(dim=0)).square().sum(dim=1).mean()
        assert (value - honest.mean(dim=0)).square().sum() <= bound * variance * (1 + 1e-9)


SHARES = [3.0, 1.0, 2.0, 0.5, 5.0, 1.0, 0.25, 1.5, 2.0, 1.0, 4.0, 0.75]


@all_rules
def test_equal_weights_are_no_weights_to_the_bit(rule, subtests):
    share = 0.1
    for size in SIZES:
        with subtests.test(size=size):
            gradients = messages(*size)
            one, other = rule.explain(gradients), rule.explain(gradients, weights=[share] * size[0])
            for field, same in zip(one, other, strict=True):
                assert (field is None and same is None) or torch.equal(field, same)
            assert torch.equal(rule(gradients, weights=np.full(size[0], share)), one.value)
            again, _ = rule.update(
                gradients, rule.init(size[1]), weights=torch.full((size[0],), share)
            )
            assert torch.equal(again.value, one.value)


def test_only_the_ratios_of_weights_matter(subtests):
    for rule in found():
        with subtests.test(rule=rule):
            gradients = messages(12, 300)
            value = rule(gradients, weights=SHARES)
            for scale in (64, 1e-30, 1e300):
                close(rule(gradients, weights=[scale * share for share in SHARES]), value)
            close(rule.explain(gradients, SHARES).value, value)
            close(rule.update(gradients, rule.init(300), SHARES)[0].value, value)


def test_weights_count(subtests):
    for rule in found(Krum):
        with subtests.test(rule=rule):
            gradients = messages(12, 300)
            assert (rule(gradients, weights=SHARES) - rule(gradients)).norm() > 1e-2


def test_weights_follow_their_workers(subtests):
    for rule in found(MoNNA, Bulyan, *DRAWS):
        with subtests.test(rule=rule):
            gradients = messages(12, 300)
            order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
            shares = torch.tensor(SHARES)
            one = rule.explain(gradients, weights=shares)
            other = rule.explain(gradients[order], weights=shares[order])
            close(other.value, one.value)
            close(other.scores, one.scores[order])


@all_rules
def test_who_has_no_weight_takes_no_part(rule, subtests):
    for size, (left, alike) in itertools.product(SIZES, [(1e30, True), (torch.nan, False)]):
        with subtests.test(size=size, left=left, alike=alike):
            gradients = messages(*size)
            gradients[[4, 7]] *= left
            rest = torch.tensor([worker not in (4, 7) for worker in range(size[0])])
            shares = torch.ones(size[0]) if alike else messages(size[0], 1, seed=3)[:, 0].exp()
            answer = rule.explain(gradients, weights=shares * rest)
            alone = rule.explain(gradients[rest], weights=shares[rest])
            close(answer.value, alone.value)
            close(answer.scores[rest], alone.scores)
            close(rule(gradients, weights=shares * rest), alone.value)
            for mark in (answer.scores, answer.dropped, answer.suspects):
                assert not mark[~rest].any()
            if answer.weights is not None:
                close(answer.weights[rest], alone.weights)
                assert not answer.weights[~rest].any()


@robust_rules
def test_who_is_dropped_takes_its_weight_along(rule, subtests):
    for size in SIZES:
        with subtests.test(size=size):
            rule = with_bound(rule, 2)
            gradients, shares = messages(*size), messages(size[0], 1, seed=3)[:, 0].exp()
            gradients[3, -1], shares[3] = torch.nan, 1e6
            # Takes no part, so it does not count as dropped.
            shares[5], gradients[5] = 0.0, torch.inf
            rest = torch.tensor([worker not in (3, 5) for worker in range(size[0])])
            answer = rule.explain(gradients, weights=shares)
            close(answer.value, with_bound(rule, 1)(gradients[rest], weights=shares[rest]))
            assert answer.dropped.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Mean(), Mean()),
        (CoordinateMedian(), CoordinateMedian()),
        (GeometricMedian(), GeometricMedian()),
        (CenteredClipping(0.5, 3), CenteredClipping(0.5, 3)),
        (CenteredClipping(), CenteredClipping()),
        (SignMajority(), SignMajority()),
        (TrimmedMean(2), TrimmedMean(6)),
        (MeanAroundMedian(2), MeanAroundMedian(6)),
        (NormClipping() >> Mean(), NormClipping() >> Mean()),
        (NormClipping() >> TrimmedMean(2), NormClipping() >> TrimmedMean(6)),
    ],
    ids=repr,
)
@given(seed=st.integers(0, 2**32 - 1), dim=st.sampled_from([1, 3, 40]), whole=st.booleans())
def test_whole_weights_are_repeated_messages(rule, told, seed, dim, whole):
    """Three messages for a worker on average, so that three times as many lies make the same."""
    gradients = messages(8, dim, seed, torch.float64)
    gradients = gradients.round() if whole else gradients  # many values are equal
    draws = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (8,), generator=draws)
    counts[torch.randperm(8, generator=draws)[0]] += 24 - int(counts.sum())
    if counts.min() < 1:
        return
    repeated = gradients.repeat_interleave(counts, dim=0)
    close(rule(gradients, weights=counts), told(repeated), 1e-6)


def test_mixtures_keep_to_the_weights_of_their_workers(subtests):
    """No worker pulls where it did not, and the weights of two alike are as their shares."""
    for rule in found():
        with subtests.test(rule=rule):
            answer = rule.explain(messages(12, 300), weights=SHARES)
            if answer.weights is not None:
                assert (answer.weights >= 0).all()
                if not parts(rule) & set(SHRINKS):
                    assert answer.weights.sum().item() == pytest.approx(1.0)
                close(answer.value.double(), answer.weights @ messages(12, 300).double())


def test_unfit_weights_are_refused(subtests):
    cases = [
        ([1.0] * 11, "one number for each of 12 workers, got shape \\(11,\\)"),
        ([[1.0]] * 12, "one number for each of 12 workers, got shape \\(12, 1\\)"),
        ([1.0] * 11 + [-2.0], "finite and at least 0, got -2.0 for worker 11"),
        ([1.0, torch.nan] * 6, "finite and at least 0, got nan for worker 1"),
        ([1.0] * 11 + [torch.inf], "finite and at least 0, got inf for worker 11"),
        ([0.0] * 12, "not all be 0"),
        (["a"] * 12, "numbers, got"),
    ]
    for rule, (weights, names) in itertools.product(found(), cases):
        with subtests.test(rule=rule, weights=weights, names=names):
            gradients = messages(12, 5)
            for ask in (rule, rule.explain, partial(rule.update, state=rule.init(5))):
                with pytest.raises(ValueError, match=f"weights must (be )?{names}"):
                    ask(gradients, weights=weights)


def test_rules_that_give_weights_no_meaning_say_so():
    class Largest(CoordinateRule):
        def num_tolerated(self, num_workers):
            return 0

        def reducer(self, num_rows, num_byzantine):
            return lambda block: block.max(dim=0).values

    gradients = messages(5, 3)
    assert torch.equal(Largest()(gradients, weights=[2] * 5), gradients.max(dim=0).values)
    with pytest.raises(ValueError, match="weights must be None for Largest, got"):
        Largest()(gradients, weights=[1, 2, 3, 4, 5])


def test_lies_of_little_weight_do_not_matter_to_rules_that_count_weights():
    """Nine of twelve lie, who stand for one sample each; three honest ones for a hundred."""
    honest = messages(3, 300)
    gradients = torch.cat([torch.full((9, 300), 1e6), honest])
    shares = [1.0] * 9 + [100.0] * 3
    for rule in (CoordinateMedian(), GeometricMedian(), TrimmedMean(1), MeanAroundMedian(1)):
        assert rule(gradients, weights=shares).abs().max() <= honest.abs().max() * (1 + 1e-5)
    assert CenteredClipping()(gradients, weights=shares).norm() < honest.norm()
