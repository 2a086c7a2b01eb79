import itertools

import pytest
import torch

from phalanx.aggregation.sorting_network import OrderStatistics, comparators


@pytest.mark.parametrize("num_rows", range(1, 13))
def test_sorts_all_zeros_and_ones(num_rows):
    """The 0-1 principle: a network that sorts these sorts everything."""
    block = torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_rows))).T.contiguous()
    before, exact = block.clone(), block.sort(dim=0).values
    for ranks in [(rank,) for rank in range(num_rows)] + [tuple(range(num_rows))]:
        found = OrderStatistics(num_rows, ranks)(block)
        assert torch.equal(torch.stack(found), exact[list(ranks)])
    assert torch.equal(block, before)


@pytest.mark.parametrize("num_rows", [1, 15, 36, 37, 64])
def test_keeps_its_buffers_from_block_to_block(num_rows):
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
