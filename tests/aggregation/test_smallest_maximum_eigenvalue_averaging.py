import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.aggregation import SmallestMaximumEigenvalueAveraging


def spread(rows):
    """The largest eigenvalue of the covariance, from the covariance itself."""
    return torch.linalg.eigvalsh(torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1)).max()


@given(
    seed=st.integers(0, 2**32 - 1),
    num_workers=st.integers(2, 11),
    dim=st.sampled_from([1, 3, 30]),
    lie=st.sampled_from([0.0, 3.0, 1e5, 1e12]),
    whole=st.booleans(),
)
def test_no_other_subset_spreads_less(seed, num_workers, dim, lie, whole):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_workers, dim, generator=generator, dtype=torch.float64)
    rows = rows.round() if whole else rows  # many subsets spread alike, or not at all
    num_byzantine = (num_workers - 1) // 2
    rows[:num_byzantine] += lie
    answer = SmallestMaximumEigenvalueAveraging(num_byzantine).explain(rows)
    kept = rows[answer.weights > 0]
    assert len(kept) == num_workers - num_byzantine
    torch.testing.assert_close(answer.value, kept.mean(dim=0))
    best = min(
        spread(rows[list(chosen)])
        for chosen in itertools.combinations(range(num_workers), len(kept))
    )
    assert spread(kept) <= best * (1 + 1e-6) + 1e-12


def test_too_many_subsets_are_refused():
    with pytest.raises(ValueError, match="max_subsets must be at least 84 to leave out 3 of 9"):
        SmallestMaximumEigenvalueAveraging(3, max_subsets=83)(torch.zeros(9, 2))
    SmallestMaximumEigenvalueAveraging(3, max_subsets=84)(torch.zeros(9, 2))
    with pytest.raises(ValueError, match="max_subsets must be at least 1, got 0"):
        SmallestMaximumEigenvalueAveraging(max_subsets=0)


def test_memory_follows_the_number_of_subsets():
    """15^7 would be 170 million."""
    rows = torch.randn(15, 5, generator=torch.Generator().manual_seed(0))
    rows[:7] += 100
    suspects = SmallestMaximumEigenvalueAveraging(7).explain(rows).suspects
    assert suspects.nonzero().flatten().tolist() == list(range(7))


def test_rows_beyond_the_range_of_float64_products_are_left_out():
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[[2, 6]] *= 1e200
    answer = SmallestMaximumEigenvalueAveraging(2).explain(rows)
    assert answer.suspects.nonzero().flatten().tolist() == [2, 6]


def test_what_is_never_looked_at_is_not_better(subtests):
    """1 287 subsets, so that most are judged by bounds alone."""
    for dim, seed in itertools.product([2, 5, 200], range(4)):
        with subtests.test(dim=dim, seed=seed):
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(13, dim, generator=generator, dtype=torch.float64)
            kept = rows[~SmallestMaximumEigenvalueAveraging(5).explain(rows).suspects]
            inside = torch.tensor(list(itertools.combinations(range(13), 8)))
            offsets = rows[inside] - rows[inside].mean(dim=1, keepdim=True)
            best = torch.linalg.matrix_norm(offsets, 2).square().min() / 8
            assert spread(kept) <= best * (1 + 1e-9)


def test_where_nobody_stands_out_among_many_no_exchange_is_better(subtests):
    """148,995 subsets, so that all but a few are judged by inertia alone."""
    for dim in [30, 3_000]:
        with subtests.test(dim=dim):
            generator = torch.Generator().manual_seed(0)
            rows = torch.randn(45, dim, generator=generator, dtype=torch.float64)
            left_out = SmallestMaximumEigenvalueAveraging(4).explain(rows).suspects
            least = spread_of_gram(rows[~left_out])
            for out, back in itertools.product((~left_out).nonzero(), left_out.nonzero()):
                other = ~left_out
                other[out], other[back] = False, True
                assert spread_of_gram(rows[other]) >= least * (1 - 1e-9)


def spread_of_gram(rows):
    offsets = rows - rows.mean(dim=0)
    return torch.linalg.eigvalsh(offsets @ offsets.T)[-1]
