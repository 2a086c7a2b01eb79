"""Majority vote over the messages of workers that did the same work."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from phalanx.columns import Shard, column_blocks, whole

_COMPARED = 65_536  # words at a time: the leader's block is read from the cache, not again
_COLUMNS = 32_768  # columns of a group whose distances are added up at a time
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Party(NamedTuple):
    """The voters that agree.

    Attributes:
        members: their ids; empty if they are no strict majority. The first one's message stands
            for all of theirs.
        spread: the largest distance of their messages to that one, relative to the longer of two.
    """

    members: list[int]
    spread: float


def vote(
    messages: Float[Tensor, "workers width"],
    voters: Sequence[int],
    tolerance: float,
    generator: torch.Generator,
    shard: Shard | None = None,
) -> Party:
    """The strict majority among the voters.

    Cost: without a tolerance two passes over the voters' messages on average, whatever Byzantine
    workers do, and one if all are honest: the voter compared with is drawn at random. With one, all
    pairs.

    Args:
        messages: one row per worker; only those of the voters are read.
        voters: ids of the workers that vote.
        tolerance: largest relative distance at which messages agree; 0 compares bits.
        generator: draws whom the others are compared with; it never decides who wins.
        shard: which columns of the messages these are; all by default. The generator is then the
            same in all shards.
    """
    shard = shard or whole(messages)
    if tolerance == 0:
        return Party(_equal_majority(messages, voters, generator, shard), 0.0)
    return Party(*_close_majority(messages, voters, tolerance, shard))


def _equal_majority(
    messages: Tensor, voters: Sequence[int], generator: torch.Generator, shard: Shard
) -> list[int]:
    """The voters of the strict majority that agree to the bit; empty if there is none."""
    majority, undecided = len(voters) // 2 + 1, list(voters)
    while len(undecided) >= majority:
        leader = undecided[int(torch.randint(len(undecided), (), generator=generator))]
        party = _equal_to(messages, leader, undecided)
        unequal = torch.tensor([voter not in party for voter in undecided])
        elsewhere = shard.anywhere(unequal).tolist()
        party = [voter for voter, other in zip(undecided, elsewhere, strict=True) if not other]
        if len(party) >= majority:
            return party
        undecided = [voter for voter in undecided if voter not in party]
    return []


def _equal_to(messages: Tensor, leader: int, voters: list[int]) -> list[int]:
    """Those of the voters that sent the leader's bits; one pass, which the unequal leave early."""
    bits = messages.view(_INTEGERS[messages.element_size()])  # tells 0 from -0, and NaN from NaN
    # On the CPU NumPy compares three times as fast as torch, and lets go of the GIL meanwhile.
    rows: Any = bits if bits.is_cuda else _words(bits.numpy())
    equal: Callable[[Any, Any], bool] = torch.equal if bits.is_cuda else np.array_equal
    party = set(voters)

    def compare(columns: slice) -> None:
        ours = rows[leader, columns]
        for voter in party - {leader}:
            if not equal(rows[voter, columns], ours):
                party.discard(voter)

    pieces = list(column_blocks(rows.shape[1], _COMPARED))
    if len(pieces) > 1 and not bits.is_cuda:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(compare, pieces))
    else:
        for columns in pieces:
            compare(columns)
    return sorted(party)


def _words(table: NDArray[Any]) -> NDArray[Any]:
    """The rows as 64-bit words, of which there are fewer to compare, where they come out even."""
    dense = table.shape[1] > 0 and table.strides[1] == table.itemsize
    return table.view(np.uint64) if dense and table[0].nbytes % 8 == 0 else table


def _close_majority(
    messages: Tensor, voters: Sequence[int], tolerance: float, shard: Shard
) -> tuple[list[int], float]:
    """The largest party around one voter within `tolerance`, that voter first, and its spread.

    The party is empty if it is no strict majority.
    """
    broken = shard.anywhere(
        torch.tensor([not messages[voter].isfinite().all() for voter in voters], dtype=torch.bool)
    ).tolist()
    finite = [voter for voter, bad in zip(voters, broken, strict=True) if not bad]
    majority = len(voters) // 2 + 1
    if len(finite) < majority:
        return [], 0.0
    distances = torch.zeros(len(finite), len(finite), dtype=torch.float64)
    norms = torch.zeros(len(finite), dtype=torch.float64)
    for columns in column_blocks(messages.shape[1], _COLUMNS):
        rows = messages[finite, columns].double()
        norms += rows.square().sum(dim=1).cpu()
        # Differences, not a Gram matrix: its cancellation loses the digits that replicas differ in.
        distances += torch.stack([(rows - row).square().sum(dim=1) for row in rows]).cpu()
    norms, distances = shard.add_up(torch.cat([norms[None], distances])).tensor_split([1])
    norms = norms[0]
    longer = torch.maximum(norms[:, None], norms[None, :])
    relative = (distances / longer.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    near = relative <= tolerance
    center = int(near.sum(dim=1).argmax())
    if int(near[center].sum()) < majority:
        return [], 0.0
    others = [voter for voter, same in zip(finite, near[center].tolist(), strict=True) if same]
    party = [finite[center], *(voter for voter in others if voter != finite[center])]
    return party, relative[center][near[center]].max().item()
