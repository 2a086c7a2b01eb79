"""Min-max and min-sum: the largest shift, against the bisection that their paper gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.attacks import AdversaryKnowledge, MinMax, MinSum


def random_rows(seed, num_honest, dim):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(num_honest, dim, generator=source, dtype=torch.float64).exp()


def largest(allowed):
    """By bisection, the largest number up to which `allowed` holds."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


def squared_distances(message, rows):
    return (rows - message).square().sum(dim=1)


def within_the_largest(message, rows):
    limit = max(squared_distances(row, rows).max() for row in rows)
    return squared_distances(message, rows).max() <= limit


def within_the_largest_sum(message, rows):
    limit = max(squared_distances(row, rows).sum() for row in rows)
    return squared_distances(message, rows).sum() <= limit


@pytest.mark.parametrize(
    ("attack", "unseen"), [(MinMax(), within_the_largest), (MinSum(), within_the_largest_sum)]
)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), num_honest=st.integers(2, 9), dim=st.integers(1, 6))
def test_the_largest_shift_that_stays_unseen(attack, unseen, seed, num_honest, dim):
    rows = random_rows(seed, num_honest, dim)
    mean, spread = rows.mean(dim=0), rows.std(dim=0)
    gamma = largest(lambda shift: unseen(mean - shift * spread, rows))
    expected = mean - gamma * spread
    torch.testing.assert_close(attack(rows, 1)[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attack", [MinMax(), MinSum()], ids=repr)
def test_all_byzantine_workers_share_one_plan(attack, subtests):
    for num_honest in (1, 4):
        with subtests.test("no spread", num_honest=num_honest):
            assert attack(torch.ones(num_honest, 3), 2).equal(torch.ones(2, 3))
    rows = random_rows(0, 5, 3)
    plan, memory = attack.plan(AdversaryKnowledge(rows, tuple(range(5)), 3))
    assert memory == ()
    assert attack(rows, 3).equal(plan(rows, 3))
