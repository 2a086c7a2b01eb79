"""Comparative gradient elimination: the shortest messages, and nothing but their length."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.aggregation import ComparativeGradientElimination, NearestNeighborMixing


def rows_of(seed, num_workers, dim=7):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(num_workers, dim, generator=source, dtype=torch.float64)


@given(seed=st.integers(0, 2**32), num_workers=st.integers(1, 11), offset=st.sampled_from([0, 1e3]))
def test_the_mean_of_the_shortest(seed, num_workers, offset):
    rows = rows_of(seed, num_workers) + offset
    bound = (num_workers - 1) // 2
    answer = ComparativeGradientElimination(bound).explain(rows)
    ordered = sorted(range(num_workers), key=lambda row: float(rows[row].norm()))
    kept = ordered[: num_workers - bound]
    torch.testing.assert_close(answer.value, rows[kept].mean(dim=0))
    torch.testing.assert_close(answer.scores, rows.norm(dim=1))
    assert answer.suspects.nonzero().flatten().tolist() == sorted(set(ordered) - set(kept))


@given(seed=st.integers(0, 2**32), lie=st.sampled_from([-1e9, -1.0, 0.0, 1.0, 1e9]))
def test_never_longer_than_the_longest_honest_message(seed, lie):
    rows = rows_of(seed, 9)
    rows[:4] *= lie
    longest = rows[4:].norm(dim=1).max()
    assert ComparativeGradientElimination(4)(rows).norm() <= longest * (1 + 1e-12)


def test_who_ties_with_one_that_is_kept_is_no_suspect():
    rows = torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, -5.0], [1.0, 0.0], [9.0, 9.0]])
    answer = ComparativeGradientElimination(2).explain(rows)
    assert answer.weights.tolist() == [1 / 3, 1 / 3, 0.0, 1 / 3, 0.0]
    assert answer.suspects.tolist() == [False, False, False, False, True]
    flipped = ComparativeGradientElimination(1).explain(torch.tensor([[1.0], [1.0], [-1.0]]))
    assert not flipped.suspects.any()


def test_mixtures_are_measured_from_the_origin_too():
    rows = rows_of(3, 9) + 2
    mixed = NearestNeighborMixing(2) >> ComparativeGradientElimination(2)
    nearest = torch.cdist(rows, rows).argsort(dim=1)[:, :7]
    means = torch.stack([rows[chosen].mean(dim=0) for chosen in nearest])
    torch.testing.assert_close(mixed(rows), ComparativeGradientElimination(2)(means))
