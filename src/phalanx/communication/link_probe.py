"""Measurement of the latency and bandwidth between ranks."""

import time
from statistics import median

import torch
import torch.distributed as dist

from phalanx.communication.collectives import AllReduce
from phalanx.communication.link import Link
from phalanx.communication.process_group import ProcessGroupCollectives


def probe_link(
    group: dist.ProcessGroup | None = None,
    *,
    device: str = "cpu",
    num_bytes: int = 4_000_000,
    num_rounds: int = 5,
) -> Link:
    """Measures what joins the ranks: latency by all-reduces of little, bandwidth by large ones.

    A collective: every rank of the group calls it. Latency includes what the ranks' software takes,
    and bandwidth is that of the slowest link: what a step meets, not what the cable could do.

    Args:
        group: the ranks that take part; None: all.
        device: that of the gradients, such as cuda:0 with NCCL.
        num_bytes: of the large all-reduces.
        num_rounds: all-reduces of each size, after one that does not count; the median does.

    Returns:
        The link that explains both, by the cost of a ring; the same on all ranks. On fast links
        latency takes most of the time of both, and the bandwidth is a rough one.

    Raises:
        ValueError: if there is but one rank, or nothing to measure.
        RankLostError: if a rank is gone, or silent for longer than the group's timeout.

    Cost: each rank sends about `2 (num_rounds + 1) num_bytes`.
    """
    if num_bytes < 4096:
        raise ValueError(f"num_bytes must be at least 4096, got {num_bytes}")
    if num_rounds < 1:
        raise ValueError(f"num_rounds must be at least 1, got {num_rounds}")
    collectives = ProcessGroupCollectives(group)
    if collectives.size < 2:
        raise ValueError(f"group must have at least 2 ranks, got {collectives.size}")
    # Of fewer numbers some ranks would have no share, and gloo would leave out their hops.
    counts = 64 * collectives.size, num_bytes // 4
    small, large = (AllReduce(torch.zeros(count, device=device)) for count in counts)
    own = [_seconds(collectives, request, num_rounds) for request in (small, large)]
    # The slowest rank's times, on all ranks: all come to the same link.
    times = torch.tensor(own, dtype=torch.float64, device=device)
    small_s, large_s = collectives.all_reduce(AllReduce(times, largest=True)).tolist()
    return Link.measured(
        large.wire_bytes(collectives.size),
        large.num_hops(collectives.size),
        small_s=small_s,
        large_s=large_s,
    )


def _seconds(collectives: ProcessGroupCollectives, request: AllReduce, num_rounds: int) -> float:
    """The median time of an all-reduce, one after the other."""
    times = []
    for _ in range(num_rounds + 1):
        began = time.perf_counter()
        collectives.all_reduce(request)[0].item()  # a GPU is waited for, too
        times.append(time.perf_counter() - began)
    return median(times[1:])
