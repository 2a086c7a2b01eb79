import itertools

import numpy as np
import pytest
import torch

from phalanx.aggregation import CoordinateMedian


def test_is_numpys_median(subtests):
    for num_workers, dim in itertools.product(
        [1, 2, 3, 8, 15, 16, 35, 36, 37, 38], [1, 16_384, 40_001]
    ):
        with subtests.test(num_workers=num_workers, dim=dim):
            generator = torch.Generator().manual_seed(num_workers)
            gradients = torch.randn(num_workers, dim, generator=generator)
            exact = np.median(gradients.numpy(), axis=0)
            np.testing.assert_allclose(CoordinateMedian()(gradients), exact, rtol=1e-6, atol=1e-7)


def test_the_middle_of_two_huge_values_does_not_overflow():
    assert CoordinateMedian()(torch.full((2, 1), 3e38)).item() == pytest.approx(3e38)
