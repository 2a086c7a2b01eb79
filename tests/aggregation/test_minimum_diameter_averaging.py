import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.aggregation import MinimumDiameterAveraging


def smallest_diameter(rows, num_kept):
    """Tries all subsets."""
    squared = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    return min(
        squared[list(chosen)][:, list(chosen)].max().item()
        for chosen in itertools.combinations(range(len(rows)), num_kept)
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    num_workers=st.integers(1, 10),
    dim=st.sampled_from([1, 2, 30]),
    whole=st.booleans(),
)
def test_no_other_subset_has_a_smaller_diameter(seed, num_workers, dim, whole):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_workers, dim, generator=generator, dtype=torch.float64)
    rows = rows.round() if whole else rows  # many distances are equal
    num_byzantine = (num_workers - 1) // 2
    answer = MinimumDiameterAveraging(num_byzantine).explain(rows)
    kept = rows[answer.weights > 0]
    assert len(kept) == num_workers - num_byzantine
    torch.testing.assert_close(answer.value, kept.mean(dim=0))
    best = smallest_diameter(rows, len(kept))
    assert smallest_diameter(kept, len(kept)) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_of_subsets_that_tie_it_takes_the_one_with_the_better_scores():
    rows = torch.tensor([[0.0], [4.0], [4.5], [5.5], [10.0]])
    # Without either end the diameter is 5.5 or 6; of the middle three, equal ones are kept.
    assert MinimumDiameterAveraging(1).explain(rows).suspects.tolist() == [False] * 4 + [True]
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    answer = MinimumDiameterAveraging(1).explain(square)
    assert (answer.weights == 0).tolist() == [False] * 3 + [True]
    assert not answer.suspects.any()  # its id alone is the ground


def test_many_workers_take_no_enumeration():
    """There are 10^13 subsets."""
    rows = torch.randn(100, 50, generator=torch.Generator().manual_seed(0))
    rows[:10] += 100
    answer = MinimumDiameterAveraging(10).explain(rows)
    assert answer.suspects.nonzero().flatten().tolist() == list(range(10))
    rows[:10] -= 100
    assert MinimumDiameterAveraging(10).explain(rows).suspects.sum() == 10
