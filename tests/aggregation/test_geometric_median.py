import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.aggregation import GeometricMedian


def cost(point, gradients):
    return (gradients - point).norm(dim=1).sum()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), num_workers=st.integers(3, 15), dim=st.sampled_from([1, 2, 9])
)
def test_no_other_point_has_a_smaller_sum_of_distances(seed, num_workers, dim):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(num_workers, dim, generator=generator, dtype=torch.float64)
    value = GeometricMedian()(gradients)
    best = cost(value, gradients)
    assert all(best <= cost(row, gradients) + 1e-5 for row in gradients)
    for size in (1e-1, 1e-2, 1e-3):
        tries = value + size * torch.randn(50, dim, generator=generator, dtype=torch.float64)
        assert all(best <= cost(point, gradients) + 1e-5 for point in tries)


def test_is_the_point_that_float64_finds_from_the_rows(subtests):
    for lie in [1e2, 1e10, 1e30]:
        with subtests.test(lie=lie):
            generator = torch.Generator().manual_seed(0)
            gradients = torch.randn(9, 20_000, generator=generator)
            gradients[:3] *= lie
            rows = gradients.double()
            point = rows[3:].mean(dim=0)
            for _ in range(400):
                weights = 1 / (rows - point).norm(dim=1)
                point = weights @ rows / weights.sum()
            value = GeometricMedian()(gradients)
            assert (value - point).norm() < 1e-5 * point.norm()


def test_a_point_where_more_than_half_meet_is_the_median_to_the_bit():
    gradients = torch.randn(7, 20_000, generator=torch.Generator().manual_seed(0))
    gradients[3:] = gradients[3]
    answer = GeometricMedian().explain(gradients)
    assert answer.weights.tolist() == [0.0] * 3 + [0.25] * 4
    assert torch.equal(answer.value, gradients[3])


def test_arguments_are_checked(subtests):
    for field in ({"smoothing": 0.0}, {"tolerance": 2.0}, {"max_iterations": 0}):
        rule = f"{next(iter(field))} must be"
        with subtests.test(field=field), pytest.raises(ValueError, match=rule):
            GeometricMedian(**field)
