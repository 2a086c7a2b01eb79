"""Fractional and cyclic repetition: the exact gradient without any s workers."""

import itertools
from itertools import combinations

import pytest
import torch

from phalanx.coding import CyclicRepetition, FractionalRepetition
from phalanx.coding.frequency_band import centered_band
from phalanx.errors import DecodeError

DIM = 40
SHAPES = [(n, s) for n in range(1, 10) for s in range(n)]
CIRCLES = [
    CyclicRepetition(n, s, group_length=n, construction=construction)
    for construction in ("centered", "random")
    for n, s in SHAPES
]
CYCLIC = [
    *CIRCLES,
    CyclicRepetition(9, 2, group_length=5),
    CyclicRepetition(9, 1, group_length=2),
    CyclicRepetition(10, 3, group_length=4),
]


def of_each(codes):
    """Loops over the codes; over those of more than seven workers in the slow run only."""
    small = [code for code in codes if code.num_workers <= 7]
    large = [code for code in codes if code.num_workers > 7]
    cases = [
        pytest.param(small, id="small"),
        pytest.param(large, id="large", marks=pytest.mark.slow),
    ]
    return pytest.mark.parametrize("codes", [case for case in cases if case.values[0]])


every_cyclic = of_each(CYCLIC)
every_fractional = of_each([FractionalRepetition(n, s) for n, s in SHAPES])


def rows(number, seed=0, dtype=torch.float32):
    return torch.randn(number, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def all_but(num_workers, missing):
    return torch.tensor([worker not in missing for worker in range(num_workers)])


def most_missing(code):
    """Every set of as many missing workers as are promised to be survived."""
    return combinations(range(code.num_workers), code.num_stragglers)


@every_cyclic
def test_any_s_may_be_missing_from_the_cyclic_code(codes, subtests):
    for code, dtype in itertools.product(codes, [torch.float32, torch.float64]):
        with subtests.test(code=code, dtype=dtype):
            gradients = rows(code.num_workers, dtype=dtype)
            messages = code.encode_all([gradients])
            mean = gradients.double().mean(dim=0)
            accuracy = {"centered": 1.2e-6, "random": 2e-4}[code.construction]
            for missing in most_missing(code):
                decoded = code.decode(messages, all_but(code.num_workers, missing))
                off = (decoded.gradient.double() - mean).norm() / mean.norm()
                assert off <= (accuracy if dtype == torch.float32 else accuracy * 1e-7)
                assert decoded.error == 0


@of_each(CIRCLES)
def test_one_more_missing_than_s_is_an_error(codes, subtests):
    for code in codes:
        with subtests.test(code=code):
            messages = code.encode_all([rows(code.num_workers)])
            number = code.num_stragglers + 1
            for missing in combinations(range(code.num_workers), number):
                arrived = all_but(code.num_workers, missing)
                assert not code.can_decode(arrived)
                with pytest.raises(
                    DecodeError, match=rf"{number} are missing|no message"
                ) as caught:
                    code.decode(messages, arrived)
                assert caught.value.workers == list(missing)


@every_cyclic
def test_each_worker_computes_s_and_one_neighbours(codes, subtests):
    for code in codes:
        with subtests.test(code=code):
            assert (code.assignment.sum(dim=0) == code.num_stragglers + 1).all()
            for group in code.groups:
                for place, worker in enumerate(group):
                    own = {
                        group[(place + step) % len(group)]
                        for step in range(code.num_stragglers + 1)
                    }
                    assert set(code.assignment[worker].nonzero().flatten().tolist()) == own


def test_every_circle_survives_s():
    code = CyclicRepetition(10, 2, group_length=5)
    gradients = rows(10)
    arrived = all_but(10, [0, 1, 6, 9])
    decoded = code.decode(code.encode_all([gradients]), arrived)
    assert torch.allclose(decoded.gradient, gradients.mean(dim=0), atol=1e-6)
    assert not code.can_decode(all_but(10, [0, 1, 2]))


@pytest.mark.parametrize(("workers", "stragglers"), [(15, 2), (16, 3), (30, 5), (100, 10)])
def test_default_circles_amplify_rounding_little(workers, stragglers):
    code = CyclicRepetition(workers, stragglers)
    gradients = rows(workers)
    messages = code.encode_all([gradients])
    mean = gradients.double().mean(dim=0)
    for start in range(workers):
        missing = {(start + step) % workers for step in range(stragglers)}
        decoded = code.decode(messages, all_but(workers, missing))
        assert (decoded.gradient.double() - mean).norm() <= 5e-6 * mean.norm()


def test_digits_that_would_be_lost_are_an_error():
    gradients = rows(45)
    code = CyclicRepetition(45, 8, group_length=45)
    messages, arrived = code.encode_all([gradients]), all_but(45, range(8))
    assert code.can_decode(arrived)
    with pytest.raises(DecodeError, match=r"would lose all digits of torch\.float32"):
        code.decode(messages, arrived)
    code = CyclicRepetition(45, 12, group_length=45)
    arrived = all_but(45, range(12))
    assert not code.can_decode(arrived)
    with pytest.raises(DecodeError, match="ill conditioned"):
        code.decode(code.encode_all([gradients]), arrived)


def test_the_centered_weights_are_better_conditioned_than_random_ones():
    """The largest weight on any gradient, for all pairs of missing workers."""

    def worst(code):
        amplified = []
        for missing in combinations(range(15), 2):
            coefficients = code.coefficients(all_but(15, missing))
            amplified.append((coefficients.abs() @ code.weights.abs()).max().item())
        return max(amplified)

    centered = worst(CyclicRepetition(15, 2, group_length=15))
    random = worst(CyclicRepetition(15, 2, group_length=15, construction="random"))
    assert centered < 10
    assert random > 5 * centered


def test_rows_of_the_random_code_lie_in_the_null_space_of_few_checks():
    weights = CyclicRepetition(9, 3, construction="random", group_length=9).weights
    assert torch.linalg.matrix_rank(weights) == 6
    assert torch.equal(weights.diagonal(), torch.ones(9, dtype=torch.float64))
    ones = torch.ones(9, dtype=torch.float64)
    assert (torch.linalg.pinv(weights.T, rtol=1e-10) @ ones @ weights - 1).abs().max() < 1e-9


def test_random_codes_follow_their_seed():
    one, same, other = (CyclicRepetition(9, 2, None, "random", seed) for seed in (1, 1, 2))
    assert torch.equal(one.weights, same.weights)
    assert not torch.equal(one.weights, other.weights)


def test_the_centered_band_is_that_of_draco_for_any_number_of_checks(subtests):
    for length, checks in [(5, 2), (7, 3), (8, 3), (9, 4), (6, 5)]:
        with subtests.test(length=length, checks=checks):
            weights, basis, _ = centered_band(length, checks)
            assert torch.linalg.matrix_rank(weights) == length - checks
            off = weights - basis @ torch.linalg.pinv(basis) @ weights
            assert off.abs().max() < 1e-12


@every_fractional
def test_one_of_each_group_is_enough_and_gives_the_same_bits(codes, subtests):
    for code in codes:
        with subtests.test(code=code):
            gradients = rows(code.num_workers)
            messages = code.encode_all([gradients])
            everybody = code.decode(messages).gradient
            assert torch.allclose(everybody, gradients.mean(dim=0), atol=1e-6)
            for number in range(code.num_workers):
                for missing in combinations(range(code.num_workers), number):
                    arrived = all_but(code.num_workers, missing)
                    covered = all(arrived[list(group)].any() for group in code.groups)
                    assert code.can_decode(arrived) == covered
                    if covered and number <= 2:
                        assert torch.equal(code.decode(messages, arrived).gradient, everybody)


@every_fractional
def test_each_worker_computes_what_its_group_does(codes, subtests):
    for code in codes:
        with subtests.test(code=code):
            load, copies = code.assignment.sum(dim=1), code.num_stragglers + 1
            assert load.min() >= copies
            if code.num_workers % copies == 0:
                assert (load == copies).all()
            assert load.max() <= load.min() + 1
            assert code.min_workers == code.num_workers - code.num_stragglers


def test_a_lost_group_is_named():
    code = FractionalRepetition(6, 1)
    with pytest.raises(DecodeError, match="workers 2, 3 are all missing") as caught:
        code.decode(torch.zeros(6, 1), all_but(6, [1, 2, 3]))
    assert caught.value.workers == [1, 2, 3]
    assert caught.value.bound == 0


@pytest.mark.parametrize("code", [FractionalRepetition(9, 2), CyclicRepetition(9, 2)], ids=repr)
def test_what_is_not_finite_counts_as_missing_wherever_it_stands(code, subtests):
    for value in [torch.nan, torch.inf, -torch.inf]:
        with subtests.test(value=value):
            gradients = rows(9)
            clean = code.encode_all([gradients])
            for liars in combinations(range(9), 2):
                messages = clean.clone()
                messages[liars[0], 0] = value
                messages[liars[1], -1] = value
                decoded = code.decode(messages)
                assert decoded.suspects.nonzero().flatten().tolist() == list(liars)
                assert torch.allclose(decoded.gradient, gradients.mean(dim=0), atol=1e-5)


def test_missing_and_not_finite_messages_draw_on_the_same_account():
    code = CyclicRepetition(5, 2)
    messages = code.encode_all([rows(5)])
    messages[[0, 1]] = torch.nan
    with pytest.raises(DecodeError, match="3 are missing"):
        code.decode(messages, all_but(5, [4]))


def test_sums_that_overflow_are_an_error_and_nobodys_fault():
    code = CyclicRepetition(5, 2, group_length=5)
    arrived = all_but(5, [0, 1])
    messages = (code.coefficients(arrived).sign() * 3.4e38).float()[:, None]
    with pytest.raises(DecodeError, match="their sum overflows"):
        code.decode(messages, arrived)
