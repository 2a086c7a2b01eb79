import pytest
import torch

from phalanx.aggregation import Bucketing, MoNNA, NearestNeighborMixing
from phalanx.errors import TooManyByzantineError


def test_is_the_mean_of_the_nearest(subtests):
    for reference in [0, 3, 8]:
        with subtests.test(reference=reference):
            rows = torch.randn(
                9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
            )
            nearest = (rows - rows[reference]).norm(dim=1).argsort()[:7]
            answer = MoNNA(2, reference).explain(rows)
            torch.testing.assert_close(answer.value, rows[nearest].mean(dim=0))
            assert not answer.suspects[nearest].any()


def test_the_reference_keeps_its_number_when_others_are_dropped():
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    rows[1] = torch.nan
    rows[5] += 100
    answer = MoNNA(2, reference=5).explain(rows)
    assert answer.scores[5] == 0
    assert answer.weights[5] > 0


def test_the_reference_counts_even_if_others_say_the_same():
    rows = torch.zeros(5, 3)
    assert MoNNA(2, reference=4).explain(rows).weights[4] > 0


def test_the_reference_must_be_there():
    rows = torch.zeros(5, 3)
    with pytest.raises(ValueError, match="reference must be below num_workers, got 5 of 5"):
        MoNNA(1, reference=5)(rows)
    with pytest.raises(ValueError, match="reference must be at least 0"):
        MoNNA(1, reference=-1)
    rows[2, 1] = torch.inf
    with pytest.raises(TooManyByzantineError, match="worker 2, is not finite"):
        MoNNA(1, reference=2)(rows)


def test_after_mixing_the_reference_is_the_mixture_with_it(subtests):
    for before in [NearestNeighborMixing(1), Bucketing(2)]:
        with subtests.test(before=before):
            rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
            rows[6] += 100
            assert (before >> MoNNA(1, reference=6)).explain(rows).weights[6] > 0
