import itertools

import torch

from phalanx.aggregation.sorting_network import OrderStatistics, comparators, trimming


def test_sorts_all_zeros_and_ones(subtests):
    """The 0-1 principle: a network that sorts these sorts everything."""
    for num_rows in range(1, 13):
        with subtests.test(num_rows=num_rows):
            block = torch.tensor(
                list(itertools.product([0.0, 1.0], repeat=num_rows))
            ).T.contiguous()
            before, exact = block.clone(), block.sort(dim=0).values
            for ranks in [(rank,) for rank in range(num_rows)] + [tuple(range(num_rows))]:
                found = OrderStatistics(num_rows, ranks)(block)
                assert torch.equal(torch.stack(found), exact[list(ranks)])
            assert torch.equal(block, before)


def test_keeps_its_buffers_from_block_to_block(subtests):
    for num_rows in [1, 15, 36, 37, 64]:
        with subtests.test(num_rows=num_rows):
            ranks = (0, num_rows // 2)
            ordered = OrderStatistics(num_rows, ranks)
            for seed, width in enumerate([7, 100, 100, 3]):
                block = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))
                exact = block.sort(dim=0).values[list(ranks)]
                assert torch.equal(torch.stack(ordered(block)), exact)


def test_leaves_out_what_nobody_asks_for():
    assert len(comparators(45, (22,))) < len(comparators(45, tuple(range(45))))
    assert len(comparators(2, (0, 1))) == 1
    assert comparators(1, (0,)) == ()


def test_trims_all_zeros_and_ones(subtests):
    """The 0-1 principle holds for selection too; the middle may lie in any order."""
    for num_rows in range(1, 15):
        with subtests.test(num_rows=num_rows):
            block = torch.tensor(
                list(itertools.product([0.0, 1.0], repeat=num_rows))
            ).T.contiguous()
            exact = block.sort(dim=0).values
            for trimmed in range((num_rows + 1) // 2):
                ranks = tuple(range(trimmed, num_rows - trimmed))
                found = torch.stack(OrderStatistics(num_rows, ranks, in_order=False)(block))
                assert torch.equal(found.sort(dim=0).values, exact[list(ranks)])


def test_trims_many(subtests):
    for num_rows, trimmed in [(45, 4), (45, 1), (61, 7), (128, 2), (200, 5)]:
        with subtests.test(num_rows=num_rows, trimmed=trimmed):
            block = torch.randn(num_rows, 50, generator=torch.Generator().manual_seed(0))
            ordered = OrderStatistics(
                num_rows, tuple(range(trimmed, num_rows - trimmed)), in_order=False
            )
            exact = block.sort(dim=0).values[trimmed : num_rows - trimmed]
            assert torch.equal(torch.stack(ordered(block)).sort(dim=0).values, exact)
            torch.testing.assert_close(ordered.mean(ordered.ranks), exact.mean(dim=0))


def test_trimming_takes_less_than_sorting():
    for num_rows, trimmed in ((15, 3), (45, 4), (100, 10)):
        ranks = tuple(range(trimmed, num_rows - trimmed))
        assert len(trimming(num_rows, trimmed)[0]) < 0.8 * len(comparators(num_rows, ranks))
