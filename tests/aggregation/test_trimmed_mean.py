import pytest
import torch

from phalanx.aggregation import Mean, TrimmedMean


def test_is_the_mean_of_the_middle(subtests):
    for num_workers, num_byzantine in [(1, 0), (5, 2), (12, 3), (45, 4)]:
        with subtests.test(num_workers=num_workers, num_byzantine=num_byzantine):
            gradients = torch.randn(num_workers, 20_000, generator=torch.Generator().manual_seed(0))
            middle = gradients.sort(dim=0).values[num_byzantine : num_workers - num_byzantine]
            torch.testing.assert_close(TrimmedMean(num_byzantine)(gradients), middle.mean(dim=0))


def test_without_liars_it_is_the_mean():
    gradients = torch.randn(7, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(TrimmedMean(0)(gradients), Mean()(gradients))


def test_the_sum_of_huge_values_does_not_overflow():
    assert TrimmedMean(1)(torch.full((9, 1), 3e38)).item() == pytest.approx(3e38)
