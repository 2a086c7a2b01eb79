import itertools

import pytest
import torch

from phalanx.aggregation.gram import Geometry, measure, partial_gram
from phalanx.columns import finite_rows, weighted_sum


@pytest.fixture(autouse=True, params=["AVX2", "AVX512"])
def both_kinds_of_products(request, monkeypatch):
    """NumPy's halves and torch's whole ones, whatever this processor is."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)


DIM = 30_000  # more than float64 is used for by itself, with a last block that is not full


def random(num_workers, dim=DIM, seed=0):
    return torch.randn(num_workers, dim, generator=torch.Generator().manual_seed(seed))


def direct(rows):
    rows = rows.double()
    return torch.stack([(rows - row).square().sum(dim=1) for row in rows])


def squared_distances(rows):
    geometry, finite = measure(rows)
    assert finite.all()
    return in_length(geometry)


def in_length(geometry):
    """Squared distances in the unit of the messages."""
    return geometry.squared_distances() * geometry.unit * geometry.unit


def assert_same(measured, exact, relative=1e-5):
    assert ((measured - exact).abs() <= relative * exact).all()


def test_a_common_offset_does_not_drown_the_distances(subtests):
    for offset in [0.0, 1.0, 1e3, 1e5]:
        with subtests.test(offset=offset):
            rows = random(9) + offset * random(1, seed=1)
            assert_same(squared_distances(rows), direct(rows))


def test_a_huge_lie_does_not_drown_the_distances_of_the_others(subtests):
    for scale, offset in itertools.product([1e4, 1e15, 1e30], [0.0, 1e3]):
        with subtests.test(scale=scale, offset=offset):
            rows = random(9) + offset * random(1, seed=1)
            rows[0] *= scale
            assert_same(squared_distances(rows)[1:, 1:], direct(rows)[1:, 1:])


def test_a_lie_that_hides_from_the_sample_is_not_centred_on(subtests):
    """One that looks like the best centre wherever the sample may look, but lies far away."""
    for liar in range(9):
        with subtests.test(liar=liar):
            rows = random(9) + 1e3 * random(1, seed=1)
            honest = torch.arange(9) != liar
            rows[liar] = rows[honest].mean(dim=0)
            rows[liar, 1000:1010] += 1e9  # between two pieces of the sample
            assert_same(squared_distances(rows)[honest][:, honest], direct(rows)[honest][:, honest])


def test_coinciding_rows_have_distance_zero():
    rows = random(1).expand(9, -1).clone()
    rows[:3] += 1e3
    assert (squared_distances(rows)[3:, 3:] == 0).all()


def test_beyond_the_range_of_float32_products(subtests):
    for scale in [1e-30, 1e-18, 1e25]:
        with subtests.test(scale=scale):
            rows = random(9) * scale
            assert_same(squared_distances(rows), direct(rows))


def test_beyond_the_range_of_float64_products():
    rows = random(9).double()
    rows[[2, 3]] *= 1e200
    squared = squared_distances(rows)
    others = [0, 1, 4, 5, 6, 7, 8]
    assert_same(squared[others][:, others], direct(rows)[others][:, others], 1e-12)
    assert torch.isinf(squared[2, others]).all()
    assert squared[2, 3] == torch.inf


def test_squares_beyond_the_range_of_float64_are_measured_in_another_unit(subtests):
    exact = direct(random(9, 400))
    for exponent, offset in itertools.product([-530, -400, 400, 530, 900], [0.0, 1e6]):
        with subtests.test(exponent=exponent, offset=offset):
            rows = (random(9, 400).double() + offset * random(1, 400, seed=1)) * 2.0**exponent
            geometry, _ = measure(rows)
            found = geometry.squared_distances() * (geometry.unit * 2.0**-exponent) ** 2
            assert_same(found, exact, 1e-5)


def test_shards_add_up(subtests):
    for references in [(None, None), (4, 4), (1, 7)]:
        with subtests.test(references=references):
            rows = random(9)
            left, right = rows[:, :11_111], rows[:, 11_111:]
            whole = partial_gram(left, references[0]) + partial_gram(right, references[1])
            assert_same(Geometry(whole).squared_distances(), direct(rows))


def test_rows_that_are_not_finite_leave_no_trace(subtests):
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    for dtype, poison in itertools.product(dtypes, [torch.nan, torch.inf]):
        with subtests.test(dtype=dtype, poison=poison):
            rows = random(9).to(dtype)
            rows[1, 20_000] = poison
            rows[5] = poison
            geometry, finite = measure(rows)
            assert finite.tolist() == [i not in (1, 5) for i in range(9)]
            assert_same(in_length(geometry), direct(rows[finite]))


def test_rows_that_are_not_doubtful_are_taken_on_trust():
    rows = torch.tensor([[torch.nan], [torch.nan], [3e38]])
    assert finite_rows(rows, torch.tensor([True, False, True])).tolist() == [False, True, True]


def test_rows_without_weight_are_never_read(subtests):
    cases = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    for dtype in cases:
        with subtests.test(dtype=dtype):
            rows = random(9).to(dtype)
            rows[[0, 4]] = torch.nan
            rows[8] = torch.inf
            weights = torch.tensor([0, 1, 2, 3, 0, 4, 5, 6, 0], dtype=torch.float64) / 21
            exact = weights[weights > 0] @ rows[weights > 0].double()
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(
                weighted_sum(rows, weights).double(), exact, rtol=unit, atol=unit
            )


def test_no_weight_at_all_sums_to_zero():
    assert torch.equal(weighted_sum(random(3, 4), torch.zeros(3).double()), torch.zeros(4))


def test_points_are_measured_along(subtests):
    for offset, dtype in itertools.product(
        [0.0, 1e3], [torch.bfloat16, torch.float32, torch.float64]
    ):
        with subtests.test(offset=offset, dtype=dtype):
            rows = (random(9) + offset).to(dtype)
            rows[3] = torch.nan
            points = torch.cat([torch.zeros(1, DIM), random(1, seed=7) + offset]).to(dtype)
            geometry, finite = measure(rows, points)
            assert geometry.num_points == 2
            exact = direct(torch.cat([rows[finite], points]))
            assert_same(in_length(geometry), exact, 1e-4 if offset else 1e-5)
            assert_same(in_length(geometry.with_points(1))[-1], exact[-1][[*range(8), 9]])


def test_mixtures_are_measured_without_forming_them():
    rows = random(9).double()
    rows[2] *= 1e200
    matrix = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)).double()
    matrix[:3, 2] = 0
    matrix /= matrix.sum(dim=1, keepdim=True)
    geometry, _ = measure(rows, torch.zeros(1, DIM).double())
    shrunk = torch.tensor([1.0, 1.0, 0.25, 1.0]).double()[:, None] * matrix
    squared = in_length(geometry.mixed(shrunk, from_origin=True))
    exact = direct(torch.cat([shrunk[:3] @ rows, torch.zeros(1, DIM)]))
    kept = [0, 1, 2, 4]
    assert_same(squared[kept][:, kept], exact, 1e-9)
    assert torch.isinf(squared[3, kept]).all()
