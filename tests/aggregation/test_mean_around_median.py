import torch

from phalanx.aggregation import MeanAroundMedian
from phalanx.aggregation.mean_around_median import mean_around_median


def by_hand(rows, num_kept):
    """Every coordinate alone: sort by the distance to the median, keep the nearest."""
    found = []
    for column in rows.double().T:
        ordered = column.sort().values
        middle = (ordered[(len(column) - 1) // 2] + ordered[len(column) // 2]) / 2
        nearest = (ordered - middle).abs().argsort(stable=True)[:num_kept]
        found.append(ordered[nearest].mean())
    return torch.stack(found).to(rows.dtype)


def test_is_what_the_definition_says(subtests):
    for num_workers, num_byzantine in [(1, 0), (5, 2), (12, 3), (15, 7)]:
        with subtests.test(num_workers=num_workers, num_byzantine=num_byzantine):
            rows = torch.randn(num_workers, 300, generator=torch.Generator().manual_seed(0)).exp()
            exact = by_hand(rows, num_workers - num_byzantine)
            torch.testing.assert_close(MeanAroundMedian(num_byzantine)(rows), exact)


def test_keeps_as_many_as_it_is_told(subtests):
    for num_kept in range(1, 12):
        with subtests.test(num_kept=num_kept):
            rows = torch.randn(11, 300, generator=torch.Generator().manual_seed(1)).exp()
            torch.testing.assert_close(
                mean_around_median(11, num_kept)(rows), by_hand(rows, num_kept)
            )


def test_of_two_equally_near_the_smaller_counts():
    assert MeanAroundMedian(1)(torch.tensor([[-1.0], [0.0], [1.0]])).item() == -0.5
