"""The passes over the messages that the decoders share."""

import itertools

import pytest
import torch

from phalanx.coding.projection import project
from phalanx.columns import add_weighted_sums, column_blocks, finite_rows, runs_of, weighted_sum

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_blocks_cut_the_columns(subtests):
    for width in [0, 1, 7, 8, 9]:
        with subtests.test(width=width):
            found = [
                column
                for block in column_blocks(width, 4)
                for column in range(block.start, block.stop)
            ]
            assert found == list(range(width))


def test_runs_of_neighbouring_rows():
    assert runs_of([]) == []
    assert runs_of([False] * 3 + [True]) == [slice(3, 4)]
    used = [row in (0, 1, 2, 5, 7, 8) for row in range(10)]
    assert runs_of(used) == [slice(0, 3), slice(5, 6), slice(7, 9)]


def test_weighted_sum_reads_the_chosen_rows_only(subtests):
    for dtype, width, chosen in itertools.product(
        DTYPES, [0, 1, 70_001], [[0], [1, 2, 3], [0, 2, 3, 6]]
    ):
        with subtests.test(dtype=dtype, width=width, chosen=chosen):
            messages = torch.randn(7, width, generator=seeded(0)).to(dtype)
            messages[[row for row in range(7) if row not in chosen]] = torch.nan
            weights = torch.zeros(7, dtype=torch.float64)
            weights[chosen] = torch.randn(len(chosen), generator=seeded(1), dtype=torch.float64)
            found = weighted_sum(messages, weights)
            expected = weights[chosen] @ messages[chosen].double()
            assert found.dtype == dtype
            assert (found.double() - expected).norm() <= torch.finfo(
                dtype
            ).eps * expected.norm() * 2


def test_projections_differ_where_messages_do(subtests):
    for dtype, width in itertools.product(DTYPES, [1, 100, 4096, 4097, 200_000]):
        with subtests.test(dtype=dtype, width=width):
            messages = torch.randn(1, width, generator=seeded(0)).to(dtype).repeat(5, 1)
            messages[1, -1] += 1
            messages[2, 0] += 1
            messages[3] = 0
            found = project(messages, seeded(1))
            assert found.shape == (5, 32)
            assert found.dtype == torch.float64
            rounding = 1e-6 * found[0].abs().max()
            assert (found[4] - found[0]).abs().max() <= rounding
            assert (found[1] - found[0]).abs().max() > 10 * rounding
            assert (found[2] - found[0]).abs().max() > 10 * rounding
            assert not found[3].any()


@pytest.mark.slow
def test_projections_are_as_long_as_what_two_messages_differ_by(subtests):
    width = 300_000
    for where in ([0], [width - 1], [5, 4101], [7, 7 + 4099], list(range(0, width, 3)), [1, 2, 3]):
        with subtests.test(first=where[:2], number=len(where)):
            messages = torch.zeros(1, width)
            messages[0, where] = 1.0
            messages[0, where[: len(where) // 2]] = -1.0
            ratios = [
                (project(messages, seeded(seed)).norm() / messages.norm()).item()
                for seed in range(100)
            ]
            assert min(ratios) >= 1 / 3  # a pair that the secret width lays on each other is rare
            assert max(ratios) <= 3


def test_what_is_not_finite_shows_in_its_own_row_only(subtests):
    for value, where in itertools.product([torch.nan, torch.inf, -torch.inf], [0, 5000, 69_999]):
        with subtests.test(value=value, where=where):
            messages = torch.ones(3, 70_000)
            messages[1, where] = value
            found = project(messages, seeded(0))
            assert found.isfinite().all(dim=1).tolist() == [True, False, True]


def test_projections_are_linear():
    messages = torch.randn(6, 20_000, generator=seeded(0), dtype=torch.float64)
    mixing = torch.randn(4, 6, generator=seeded(1), dtype=torch.float64)
    mixed, apart = (project(m, seeded(2)) for m in (mixing @ messages, messages))
    assert torch.allclose(mixed, mixing @ apart, rtol=1e-11)


def test_projections_depend_on_the_secret():
    messages = torch.ones(2, 10)
    assert not torch.equal(project(messages, seeded(0)), project(messages, seeded(1)))


def test_no_columns_have_projections_of_zero():
    assert not project(torch.zeros(3, 0), seeded(0)).any()


def test_only_rows_that_are_asked_for_are_looked_at(subtests):
    for dtype, value, where in itertools.product(
        DTYPES, [torch.nan, torch.inf, -torch.inf], [0, 5000, 69_999]
    ):
        with subtests.test(dtype=dtype, value=value, where=where):
            messages = torch.full((4, 70_000), torch.finfo(dtype).max, dtype=dtype)
            messages[1] *= -1
            messages[2:, where] = value
            asked = torch.tensor([True, True, True, False])
            assert finite_rows(messages, asked).tolist() == [True, True, False, True]
            assert finite_rows(messages[:, :0], asked).all()


def test_weighted_sums_are_added_to_the_workers_named_and_read_no_more_than_needed(subtests):
    for width in [0, 1, 40_000]:
        with subtests.test(width=width):
            gradients = torch.randn(5, width, generator=seeded(0), dtype=torch.float64)
            weights = torch.randn(4, 5, generator=seeded(1), dtype=torch.float64)
            weights[:, 3] = 0
            weights[1] = 0
            expected = 1 + weights @ gradients
            expected[2] = 1
            gradients[3] = torch.nan
            messages = torch.ones(4, width, dtype=torch.float64)
            add_weighted_sums(messages, [0, 1, 3], gradients, weights)
            assert torch.allclose(messages, expected)
