"""The cyclic code: exact up to rounding, and every liar named, while e + 2 b <= 2 s."""

import itertools
from functools import lru_cache
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.attacks import AdversaryKnowledge, LeastVisible
from phalanx.coding import DracoCyclic, DracoRepetition
from phalanx.coding.frequency_band import cyclic_algebra
from phalanx.coding.verdict import Evidence, judge
from phalanx.errors import DecodeError

DIM = 40
ACCURACY = {torch.float32: 5e-7, torch.float64: 1e-12}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def rows(number, seed=0, dim=DIM, dtype=torch.float32):
    return torch.randn(number, dim, generator=seeded(seed), dtype=torch.float64).to(dtype)


def noise(honest, share, seed):
    """Random rows of `share` of the honest rows' norms."""
    drawn = rows(len(honest), seed, honest.shape[1], honest.dtype)
    return share * drawn * (honest.norm(dim=1) / drawn.norm(dim=1))[:, None]


LIES = {
    "reversed": lambda honest, seed: -100 * honest,
    "constant": lambda honest, seed: torch.full_like(honest, -100.0),
    "random": lambda honest, seed: noise(honest, 1.0, seed),
    "a million times": lambda honest, seed: 1e6 * honest,
    "1e30 times": lambda honest, seed: 1e30 * honest,
    "one of 1e30": lambda honest, seed: torch.cat([1e30 * honest[:1], -honest[1:]]),
    "one percent": lambda honest, seed: honest + noise(honest, 1e-2, seed),
    "one thousandth": lambda honest, seed: honest + noise(honest, 1e-3, seed),
    "agreed": lambda honest, seed: honest + noise(honest[:1], 3.0, seed),
    "the same message": lambda honest, seed: noise(honest[:1], 1.0, seed).expand_as(honest),
}


def relative_error(found, expected):
    expected = expected.double()
    return ((found.double() - expected).norm() / expected.norm()).item()


@lru_cache
def sent(code, seed, dtype):
    """Gradients, and what honest workers send."""
    gradients = rows(code.num_workers, seed, dtype=dtype)
    return gradients, code.encode_all([gradients])


def check(code, bad, lie, seed=0, dtype=torch.float32, missing=(), bound=None, proven=True):
    """Decodes a lie; if it is large enough to be proven, all who take part are named."""
    gradients, honest = sent(code, seed, dtype)
    messages = honest.clone()
    if len(bad):
        messages[bad] = LIES[lie](messages[bad], seed + 1)
    arrived = torch.ones(code.num_workers, dtype=torch.bool)
    arrived[list(missing)] = False
    messages[list(missing)] = torch.nan
    decoded = code.decode(messages, arrived, generator=seeded(seed))
    named = decoded.suspects.nonzero().flatten().tolist()
    assert named == sorted(bad) if proven else set(named) <= set(bad)
    error = relative_error(decoded.gradient, gradients.double().mean(0))
    assert error <= (bound or ACCURACY[dtype])
    assert off(decoded, gradients) <= decoded.error
    return error


def off(decoded, gradients):
    """What `Decoded.error` bounds."""
    gradients = gradients.double()
    typical = gradients.norm() / len(gradients) ** 0.5
    return ((decoded.gradient.double() - gradients.mean(0)).norm() / typical).item()


def subsets(number, most):
    return [list(bad) for size in range(most + 1) for bad in combinations(range(number), size)]


def neighbours(number, size):
    return [sorted((first + step) % number for step in range(size)) for first in range(number)]


def sample(sets, size, seed=0):
    if len(sets) <= size:
        return sets
    chosen = torch.randperm(len(sets), generator=seeded(seed))[:size]
    return [sets[index] for index in chosen.tolist()]


def test_every_set_of_liars_is_found_and_harmless(subtests):
    for dtype, lie, workers in itertools.product(ACCURACY, LIES, [4, 5, 6, 7, 8, 9]):
        with subtests.test(dtype=dtype, lie=lie, workers=workers):
            for s in {1, (workers - 1) // 2}:
                code = DracoCyclic(workers, s)
                for bad in sample(subsets(workers, s), 10):
                    check(code, bad, lie, dtype=dtype)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("workers", range(4, 12))
def test_every_set_of_liars_for_every_bound(workers, subtests):
    """Every set up to 9 workers with s <= 3; a sample of the sets where there are more than 130."""
    for dtype, lie in itertools.product(ACCURACY, LIES):
        with subtests.test(dtype=dtype, lie=lie):
            for s in range(1, (workers - 1) // 2 + 1):
                code = DracoCyclic(workers, s)
                for bad in sample(subsets(workers, s), 130):
                    check(code, bad, lie, dtype=dtype)


def test_larger_circles(subtests):
    for lie, (workers, s) in itertools.product(LIES, [(10, 3), (11, 4), (15, 3)]):
        with subtests.test(lie=lie, workers=workers, s=s):
            for bad in sample(subsets(workers, s), 8) + neighbours(workers, s)[:4]:
                check(DracoCyclic(workers, s), bad, lie)


@pytest.mark.slow
def test_liars_side_by_side(subtests):
    for lie, (workers, s) in itertools.product(
        ["reversed", "constant", "one thousandth", "agreed"], [(15, 3), (21, 5), (22, 9), (45, 9)]
    ):
        with subtests.test(lie=lie, workers=workers, s=s):
            code = DracoCyclic(workers, s)
            circle = len(code.groups[0])
            for bad in neighbours(circle, s)[:: circle // 2]:
                # A small lie of nine side by side has many explanations, and proves nothing.
                proven = s < 9 or lie != "one thousandth"
                check(code, bad, lie, bound=1e-6, proven=proven)


def test_s_liars_in_every_circle():
    code = DracoCyclic(45, 3)
    bad = [group[position] for group in code.groups for position in (0, 5, 6)]
    for lie in LIES:
        check(code, bad, lie)


@given(
    workers=st.integers(3, 25),
    s=st.integers(1, 4),
    share=st.floats(0, 1),
    scale=st.floats(-3, 8),
    agree=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_random_liars_of_random_codes(workers, s, share, scale, agree, seed):
    s = min(s, (workers - 1) // 2)
    code = DracoCyclic(workers, s)
    bad = torch.randperm(len(code.groups[0]), generator=seeded(seed))[: round(share * s)].sort()
    gradients = rows(workers, seed)
    messages = code.encode_all([gradients])
    honest = messages[bad.values]
    messages[bad.values] += noise(honest[:1] if agree else honest, 10**scale, seed + 1)
    decoded = code.decode(messages, generator=seeded(seed))
    assert decoded.suspects.nonzero().flatten().tolist() == bad.values.tolist()
    assert relative_error(decoded.gradient, gradients.double().mean(0)) <= 1e-6


@pytest.mark.slow
def test_missing_and_lying_together(subtests):
    for workers, s in [(5, 1), (5, 2), (6, 2), (7, 2), (8, 3), (9, 2)]:
        with subtests.test(workers=workers, s=s):
            code = DracoCyclic(workers, s)
            for number in range(2 * s + 1):
                for liars in range((2 * s - number) // 2 + 1):
                    for seed in range(12):
                        order = torch.randperm(workers, generator=seeded(seed)).tolist()
                        missing, bad = order[:number], sorted(order[number : number + liars])
                        for lie in ("reversed", "one thousandth", "one of 1e30"):
                            check(code, bad, lie, seed, missing=missing, bound=1e-6)


def test_more_missing_than_checks_is_an_error(subtests):
    for workers in [5, 8, 9]:
        with subtests.test(workers=workers):
            code = DracoCyclic(workers, 2)
            messages = code.encode_all([rows(workers)])
            for number in range(5, workers + 1):
                arrived = torch.arange(workers) >= number
                with pytest.raises(DecodeError, match=f"{number} messages are missing") as caught:
                    code.decode(messages, arrived)
                assert caught.value.workers == list(range(workers))


def test_one_liar_too_many_is_an_error(subtests):
    for lie, (workers, s) in itertools.product(
        sorted(LIES.keys() - {"agreed", "the same message"}), [(5, 1), (8, 2), (9, 3), (15, 3)]
    ):
        with subtests.test(lie=lie, workers=workers, s=s):
            code = DracoCyclic(workers, s)
            for seed in range(20):
                bad = torch.randperm(workers, generator=seeded(seed))[: s + 1]
                messages = code.encode_all([rows(workers, seed)])
                messages[bad] = LIES[lie](messages[bad], seed + 1)
                with pytest.raises(DecodeError) as caught:
                    code.decode(messages, generator=seeded(seed))
                assert caught.value.bound == s
                assert caught.value.workers == list(range(workers))


def test_a_huge_liar_covers_nobody():
    """What is left out for its size counts as a liar, so the checks on the others remain."""
    code = DracoCyclic(5, 1)
    messages = code.encode_all([rows(5)])
    messages[0] *= 1e30
    messages[1] *= -1e30
    messages[3] *= -100
    with pytest.raises(DecodeError):
        code.decode(messages)


def test_the_algebra_of_a_code(subtests):
    for band, workers in itertools.product(["centered", "published"], [4, 5, 8, 9, 15, 20, 21]):
        with subtests.test(band=band, workers=workers):
            for s in range((workers - 1) // 2 + 1):
                algebra = cyclic_algebra(workers, s, band)
                weights = algebra.weights
                size = weights.abs().max()
                parity = algebra.parity.to(torch.complex128)
                assert (parity @ weights.to(torch.complex128)).abs().sum() <= 1e-12 * workers * size
                assert ((weights != 0).sum(dim=1) == 2 * s + 1).all()
                offset = (torch.arange(workers) - torch.arange(workers)[:, None]) % workers
                assert torch.equal(weights != 0, offset <= 2 * s)
                everybody = algebra.combination(list(range(workers)))
                assert (everybody @ weights - 1).abs().max() <= 1e-12 * size.clamp_min(1)
                if band == "centered":
                    assert not weights.is_complex()
                    if workers % 2:
                        assert (weights >= 0).all()
                        assert torch.allclose(weights.sum(dim=1), torch.ones(workers).double())
                    assert s == 0 or workers % 2 == 0 or size <= 0.5


def test_the_closed_form_of_the_weights(subtests):
    cases = [
        (5, 1, [0.2764, 0.4472, 0.2764]),
        (7, 2, [0.1076, 0.2417, 0.3014, 0.2417, 0.1076]),
        (15, 3, [0.0233, 0.1065, 0.2268, 0.2868, 0.2268, 0.1065, 0.0233]),
    ]
    for workers, s, expected in cases:
        with subtests.test(workers=workers, s=s, expected=expected):
            found = DracoCyclic(workers, s).weights[0, : 2 * s + 1]
            assert torch.allclose(found, torch.tensor(expected).double(), atol=5.1e-5)


def test_a_circle_of_2s_plus_1_is_the_repetition_code():
    weights = DracoCyclic(7, 3).weights
    assert torch.allclose(weights, torch.full((7, 7), 1 / 7).double())


@given(st.data())
def test_lengths_of_circles(data):
    s = data.draw(st.integers(0, 25), label="s")
    shortest = 2 * s + 1
    workers = data.draw(st.integers(shortest, 150), label="workers")
    longest = data.draw(st.none() | st.integers(shortest, workers), label="group_length")
    lengths = [len(group) for group in DracoCyclic(workers, s, longest).groups]
    assert sum(lengths) == workers
    assert min(lengths) >= shortest
    as_short_as_can_be = -(-workers // (workers // shortest))
    assert max(lengths) <= max(longest or max(21, shortest), as_short_as_can_be)


def test_the_centered_band_keeps_digits_that_the_published_one_loses(subtests):
    for bad in [[], [4, 17, 23, 31, 44], [0, 11, 12, 30, 31]]:
        with subtests.test(bad=bad):
            gradients = rows(45)
            errors = {}
            for band in ("centered", "published"):
                # The published band loses so much that honest messages disagree.
                tolerance = None if band == "centered" else 1e-3
                code = DracoCyclic(45, 5, group_length=45, band=band, tolerance=tolerance)
                messages = code.encode_all([gradients])
                messages[bad] *= -100
                decoded = code.decode(messages, generator=seeded(0))
                named = decoded.suspects.nonzero().flatten().tolist()
                assert named == bad if band == "centered" else not named
                assert off(decoded, gradients) <= decoded.error
                errors[band] = relative_error(decoded.gradient, gradients.double().mean(0))
            assert errors["centered"] <= 5e-6
            assert errors["published"] >= 1e-4


def test_neighbours_on_a_long_circle_are_found_at_the_price_of_digits():
    code = DracoCyclic(45, 5, group_length=45)
    for bad in neighbours(45, 5)[::9]:
        check(code, bad, "reversed", bound=1e-4, proven=False)


def test_published_messages_are_twice_as_wide():
    code = DracoCyclic(9, 2, band="published")
    assert code.encode(0, rows(5)).shape == (2 * DIM,)
    assert DracoCyclic(9, 2).encode(0, rows(5)).shape == (DIM,)
    for bad in sample(subsets(9, 2), 12):
        check(code, bad, "reversed", dtype=torch.float64)
    with pytest.raises(ValueError, match="even width with band='published', got 7"):
        code.decode(torch.zeros(9, 7))


def test_both_codes_decode_to_the_same_gradient():
    gradients = rows(15)
    found = [
        code.decode(code.encode_all([gradients])).gradient
        for code in (DracoCyclic(15, 3), DracoRepetition(15, 3))
    ]
    assert relative_error(*found) <= 5e-7


def test_what_passes_for_rounding_does_as_little():
    code = DracoCyclic(15, 3)
    gradients = rows(15)
    messages = code.encode_all([gradients])
    messages[4] += noise(messages[4:5], 1e-7, 1)[0]
    decoded = code.decode(messages)
    assert not decoded.suspects.any()
    assert decoded.residual > 0
    assert relative_error(decoded.gradient, gradients.double().mean(0)) <= 1e-6


def test_a_tolerance_for_other_hardware():
    code = DracoCyclic(15, 3, tolerance=1e-4)
    gradients = rows(15)
    honest = code.encode_all([gradients])
    honest += noise(honest, 1e-5, 1)
    with pytest.raises(DecodeError, match="honest replicas disagree"):
        DracoCyclic(15, 3).decode(honest)
    honest[[3, 4, 5]] *= -100
    decoded = code.decode(honest)
    assert decoded.suspects.nonzero().flatten().tolist() == [3, 4, 5]
    assert relative_error(decoded.gradient, gradients.double().mean(0)) <= 1e-4


def test_the_verdict_on_exact_numbers(subtests):
    for erased in [[], [2], [0, 6]]:
        with subtests.test(erased=erased):
            algebra = cyclic_algebra(11, 3, "centered")
            clean = algebra.weights @ torch.randn(11, 4, generator=seeded(0), dtype=torch.float64)
            for liars in combinations([1, 4, 5, 9], (6 - len(erased)) // 2):
                projections = clean.clone()
                projections[list(liars)] += 1.0
                projections[erased] = 1e9
                verdict = judge(Evidence(algebra, projections, erased, 1e-10))
                assert verdict.accused == verdict.named == list(liars)
                assert verdict.residual <= 1e-12
                assert verdict.error <= 1e-7
            projections = torch.randn(11, 4, generator=seeded(1), dtype=torch.float64)
            assert judge(Evidence(algebra, projections, erased, 1e-10)) is None


def all_explanations(algebra, projections, slack):
    """Every set within the bound without which the projections are those of honest messages."""
    length, most = len(projections), len(algebra.parity) // 2
    for size in range(most + 1):
        for accused in combinations(range(length), size):
            kept = [worker for worker in range(length) if worker not in accused]
            frame = torch.linalg.qr(algebra.basis[kept]).Q
            rest = projections[kept] - frame @ (frame.T @ projections[kept])
            if rest.norm() <= slack * projections[kept].norm():
                yield set(accused), algebra.combination(kept) @ projections[kept]


@given(seed=st.integers(0, 2**32), scale=st.floats(-6, 2), count=st.integers(0, 3))
def test_a_verdict_holds_in_every_explanation(seed, scale, count):
    algebra = cyclic_algebra(9, 3, "centered")
    honest = algebra.weights @ torch.randn(9, 8, generator=seeded(seed), dtype=torch.float64)
    bad = torch.randperm(9, generator=seeded(seed + 1))[:count].tolist()
    honest[bad] += 10**scale * torch.randn(8, generator=seeded(seed + 2), dtype=torch.float64)
    verdict = judge(Evidence(algebra, honest, [], 1e-4))
    explanations = list(all_explanations(algebra, honest, 1e-4))
    assert explanations
    assert set(verdict.named) <= set.intersection(*(accused for accused, _ in explanations))
    ours = [gradient for accused, gradient in explanations if accused == set(verdict.accused)]
    for _, gradient in explanations if ours else []:
        assert (gradient - ours[0]).norm() <= verdict.error


def least_visible(code, messages, byzantine, size):
    """The round's messages once these workers lie where the checks see least."""
    honest = [worker for worker in range(code.num_workers) if worker not in byzantine]
    lied = messages.clone()
    for rank, worker in enumerate(byzantine):
        view = AdversaryKnowledge(
            messages[honest], tuple(honest), len(byzantine), encoding=code.encoding
        )
        plan, _ = LeastVisible(size).member(rank).plan(view)
        lied[worker] = plan.forge(messages[worker], messages[honest], len(byzantine))
    return lied


@pytest.mark.slow
def test_nobody_is_framed_by_the_lies_that_the_checks_see_least(subtests):
    for dtype, (workers, s) in itertools.product(ACCURACY, [(9, 2), (15, 3), (21, 3), (21, 5)]):
        with subtests.test(dtype=dtype, workers=workers, s=s):
            code = DracoCyclic(workers, s)
            gradients, honest = sent(code, 0, dtype)
            smallest = 1e-7 if dtype == torch.float32 else 1e-13
            seen = []
            for exponent in range(8):
                for bad in (list(range(s)), list(range(0, 2 * s, 2))):
                    lied = least_visible(code, honest, bad, smallest * 10**exponent)
                    decoded = code.decode(lied)
                    named = set(decoded.suspects.nonzero().flatten().tolist())
                    assert named <= set(bad)
                    assert off(decoded, gradients) <= decoded.error
                    seen.append(named == set(bad))
            assert not seen[0]
            assert seen[-1]


def test_what_the_page_says_of_small_lies(subtests):
    """The figures of docs/coding.md: what an honest round states, and what lies are named from."""
    for workers, s, stated, size in [(9, 2, 3e-6, 1e-4), (15, 3, 5e-6, 3e-3), (21, 5, 2e-5, 1e-1)]:
        with subtests.test(workers=workers, s=s):
            code = DracoCyclic(workers, s)
            honest = sent(code, 0, torch.float32)[1]
            assert stated / 2 <= code.decode(honest).error <= stated * 1.5
            bad = list(range(1, s + 1))
            for share, named in [(1, bad), (0.03, [])]:
                decoded = code.decode(least_visible(code, honest, bad, size * share))
                assert decoded.suspects.nonzero().flatten().tolist() == named


def test_a_gradient_that_may_be_too_far_off_is_refused():
    code = DracoCyclic(15, 3, max_error=1e-5)
    gradients = rows(15)
    messages = code.encode_all([gradients])
    assert code.decode(messages).error <= 1e-5
    with pytest.raises(DecodeError, match=r"off by .* of a partition's, and max_error is 1.0e-05"):
        code.decode(least_visible(code, messages, [0, 1, 2], 1e-3))
