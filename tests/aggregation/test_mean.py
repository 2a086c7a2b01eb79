import pytest
import torch

from phalanx.aggregation import Mean
from phalanx.errors import TooManyByzantineError


def test_huge_lies_pass_through(subtests):
    cases = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    for dtype in cases:
        with subtests.test(dtype=dtype):
            huge = torch.finfo(dtype).max
            gradients = torch.zeros(5, 3, dtype=dtype)
            gradients[:3] = huge
            assert Mean()(gradients).tolist() == pytest.approx(
                [0.6 * huge] * 3, rel=torch.finfo(dtype).eps
            )
            assert not Mean().explain(gradients).suspects.any()


def test_survives_nobody():
    gradients = torch.zeros(5, 3)
    gradients[2, 1] = torch.inf
    with pytest.raises(TooManyByzantineError) as error:
        Mean()(gradients)
    assert error.value.workers == [2]
    assert error.value.bound == 0


def test_infinities_that_cancel_are_seen():
    gradients = torch.zeros(5, 3)
    gradients[2, 1], gradients[3, 2] = torch.inf, -torch.inf
    with pytest.raises(TooManyByzantineError):
        Mean()(gradients)
