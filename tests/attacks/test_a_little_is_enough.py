"""A little is enough: by hand, and the published values of z."""

import pytest
import torch

from phalanx.attacks import ALittleIsEnough

HONEST = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 6.0, 9.0]])


def test_mean_and_standard_deviation_by_hand(subtests):
    for sign, expected in ((-1, [0.5, 1.0, 1.5]), (1, [3.5, 7.0, 10.5])):
        with subtests.test(sign=sign):
            assert ALittleIsEnough(z=1.5, sign=sign)(HONEST, 2).tolist() == [expected] * 2


def test_published_z(subtests):
    for n, f, z in ((25, 5, 0.2533), (25, 11, 1.0676), (20, 8, 0.6745), (50, 12, 0.3360)):
        with subtests.test(n=n, f=f):
            found = ALittleIsEnough.largest_z(n, f)
            assert found == pytest.approx(z, abs=5e-5)
            honest = torch.randn(n - f, 4, generator=torch.Generator().manual_seed(0))
            assert torch.equal(ALittleIsEnough()(honest, f), ALittleIsEnough(z=found)(honest, f))


def test_a_single_honest_worker_has_no_spread():
    honest = torch.tensor([[1.0, 2.0, 3.0]])
    assert ALittleIsEnough(z=1.5)(honest, 1).tolist() == [[1.0, 2.0, 3.0]]


def test_no_formula_for_a_majority(subtests):
    for honest, f in ((1, 1), (3, 4), (2, 9)):
        with (
            subtests.test(honest=honest, f=f),
            pytest.raises(ValueError, match=f"z must be given .* num_byzantine={f} of"),
        ):
            ALittleIsEnough()(torch.ones(honest, 2), f)


def test_needs_to_see_the_honest_messages():
    with pytest.raises(ValueError, match="honest must have at least 1 row"):
        ALittleIsEnough(z=1.0).forge(torch.ones(3), None, 1)


def test_sign_is_checked():
    with pytest.raises(ValueError, match="sign must be -1 or 1, got 0"):
        ALittleIsEnough(sign=0)
