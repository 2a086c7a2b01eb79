"""Robust all-reduce: the counterpart of `torch.distributed.all_reduce`."""

import torch
import torch.distributed as dist
from torch import Tensor

from phalanx.aggregation import Aggregate, Aggregator, CenteredClipping, Pipeline, State
from phalanx.coding import Code
from phalanx.communication.agreement import require_agreement
from phalanx.communication.point_to_point import Peers
from phalanx.ddp.clipped import ClippedAllReduce
from phalanx.ddp.sharded import ShardedAllReduce, groups_of

Collective = ShardedAllReduce | ClippedAllReduce


def choose(
    rule: Aggregator | Code,
    peers: Peers,
    *,
    length: int,
    max_pieces: int,
    dtype: torch.dtype,
    num_byzantine_aggregators: int,
) -> Collective:
    """The cheapest collective for the rule or code; arguments are those of `ShardedAllReduce`.

    Centred clipping in one step, nobody voting, needs no messages in one place.

    Raises:
        ValueError: as `ShardedAllReduce` does, and if ranks are to vote on what a code decodes.
    """
    if num_byzantine_aggregators and not isinstance(rule, Aggregator):
        raise ValueError(
            "num_byzantine_aggregators must be 0 with a code, whose decoders draw secrets of their "
            f"own, got {num_byzantine_aggregators}"
        )
    groups_of(peers.size, num_byzantine_aggregators)
    if (
        isinstance(rule, CenteredClipping)
        and rule.start == "last"
        and rule.iterations == 1
        and not num_byzantine_aggregators
    ):
        return ClippedAllReduce(rule, peers)
    return ShardedAllReduce(
        rule,
        peers,
        length=length,
        max_pieces=max_pieces,
        dtype=dtype,
        num_byzantine_aggregators=num_byzantine_aggregators,
    )


def robust_all_reduce(
    tensor: Tensor,
    rule: Aggregator,
    state: State | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    num_byzantine_aggregators: int = 0,
) -> tuple[Aggregate, State]:
    """The aggregate of the vectors of all ranks, on every rank: `rule.update` without a server.

    A collective: every rank of the group calls it, with a vector of the same length and dtype, the
    same rule and state. Each rank aggregates its share of the columns of all vectors; the rest is
    arithmetic on what the ranks know of all columns together, so that the whole vectors decide.
    Centred clipping in one step lets every rank clip its own vector and all-reduces.

    Args:
        tensor: this rank's vector, `(dim,)`, which is not changed; float16, bfloat16, float32 or
            float64.
        rule: how to aggregate; a rank is a worker.
        state: what the rule remembers, from the round before; None before the first.
        group: the ranks that take part; None: all.
        num_byzantine_aggregators: ranks that may lie while they aggregate (s). Every shard is then
            aggregated by 2 s + 1 ranks, which vote by bits: 2 s + 1 times the traffic, and a hash
            of everything that is received. Ranks need equal hardware and software for that.

    Returns:
        What `rule.update` would answer to the stacked vectors of all ranks: bit for bit where the
        rule is coordinate-wise, to rounding otherwise. The same bits on all ranks.

    Raises:
        ValueError: if the vector is unfit, or there are too few ranks for the rule.
        DisagreementError: on all ranks, if ranks differ in rule, length, dtype, versions or step.
        TooManyByzantineError: if more vectors are not finite than the rule survives; on all ranks.
        DecodeError: if ranks that aggregate the same shard do not agree.
        RankLostError: if a rank is gone, or silent for longer than the group's timeout.

    Cost: with s = 0, each of n ranks sends `2 (n - 1) / n` vectors, as in a ring all-reduce, and 8
    n^3 bytes for each Gram matrix.

    >>> import torch
    >>> import torch.distributed as dist
    >>> from phalanx.aggregation import CoordinateMedian
    >>> from phalanx.ddp import robust_all_reduce
    >>> store = dist.HashStore()
    >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> robust_all_reduce(torch.tensor([1.0, 2.0]), CoordinateMedian())[0].value
    tensor([1., 2.])
    >>> dist.destroy_process_group()
    """
    if tensor.ndim != 1 or not tensor.is_floating_point():
        raise ValueError(
            "tensor must be floating and have shape (dim,), "
            f"got {tensor.dtype} and {tuple(tensor.shape)}"
        )
    value, peers = tensor.detach().clone(), Peers(group)
    state = (
        rule.init(len(value), dtype=value.dtype, device=value.device) if state is None else state
    )
    step, memory = (state[:1], state[1:]) if isinstance(rule, Pipeline) else ((), state)
    number = int(step[0]) if step else 0
    facts = {"rule": rule, "length": len(value), "dtype": value.dtype, "step": number}
    facts["num_byzantine_aggregators"] = num_byzantine_aggregators
    require_agreement(peers, {"hook": "robust_all_reduce", **facts}, value.device)
    collective = choose(
        rule,
        peers,
        length=len(value),
        max_pieces=1,
        dtype=value.dtype,
        num_byzantine_aggregators=num_byzantine_aggregators,
    )
    collective.post(value, *memory)
    answer, _ = collective.finish(number)
    remembered = (value,) if memory else ()
    return answer._replace(value=value), (*(one + 1 for one in step), *remembered)
