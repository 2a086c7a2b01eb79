"""The links between ranks: of real processes on one machine, and what cannot be probed."""

import pytest
import torch.distributed as dist

from ddp.ranks import Ranks
from phalanx.communication import probe_link


@pytest.mark.slow
def test_ranks_on_one_machine_are_close_and_agree(tmp_path):
    """On links of a known rate and latency: `tests/communication/test_slow_links.py`."""
    with Ranks(2, tmp_path) as pair:
        one, other = pair(probe_link, num_rounds=3)
    assert one == other
    assert one.rate > 1e8
    assert 0 < one.latency_s < 0.02


def test_what_cannot_be_probed_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="group must have at least 2 ranks, got 1"):
            probe_link()
        with pytest.raises(ValueError, match="num_bytes must be at least 4096, got 8"):
            probe_link(num_bytes=8)
        with pytest.raises(ValueError, match="num_rounds must be at least 1, got 0"):
            probe_link(num_rounds=0)
    finally:
        dist.destroy_process_group()
