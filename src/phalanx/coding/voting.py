"""Majority vote over the messages of workers that did the same work."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import frexp, isfinite, ldexp
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from phalanx.columns import Shard, column_blocks, whole
from phalanx.vertex_cover import bit_sets, coverable

_COMPARED = 65_536  # words at a time: the leader's block is read from the cache, not again
_COLUMNS = 32_768  # columns of a group whose distances are added up at a time
_SLACK = 1e-9  # relative, of distances that are added up: honest pairs at the tolerance are near
_HEADROOM = 10  # bits by which more shards than ranks have ever been cannot overflow
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Party(NamedTuple):
    """Outcome of a vote: who may be honest.

    An *explanation* of the messages is a set of voters, more than half of them, any two of whose
    messages agree: the honest, as far as anybody can tell. Agreement to the bit leaves one at most.
    Agreement within a tolerance does not carry over from one pair to the next, and can leave
    several, of which any two share a voter.

    Attributes:
        members: the voters that some explanation contains, so that only the others are Byzantine in
            every one; empty if there is none. The first one's message stands for all of theirs: it
            is the one whose farthest member is nearest.
        spread: the largest distance of their messages to that one, relative to the longer of two.
        radius: the largest distance of their messages to that one.
        shortest: the smallest norm of their messages; 0 without a tolerance, where nobody asks.
        company: for a voter the size of the largest set with it in which any two agree, 0 if its
            message is not finite; of all voters where `vote` was to be complete, else of members.
    """

    members: list[int]
    spread: float = 0.0
    radius: float = 0.0
    shortest: float = 0.0
    company: Mapping[int, int] = MappingProxyType({})


def vote(
    messages: Float[Tensor, "workers width"],
    voters: Sequence[int],
    tolerance: float,
    generator: torch.Generator,
    shard: Shard | None = None,
    *,
    complete: bool = False,
) -> Party:
    """The strict majority among the voters.

    Cost: without a tolerance two passes over the voters' messages on average, whatever Byzantine
    workers do, and one if all are honest: the voter compared with is drawn at random. With one, all
    pairs, and a search that is exponential in the number of Byzantine voters at worst.

    Args:
        messages: one row per worker; only those of the voters are read.
        voters: ids of the workers that vote.
        tolerance: largest relative distance at which messages agree; 0 compares bits.
        generator: draws whom the others are compared with; it never decides who wins.
        shard: which columns of the messages these are; all by default. The generator is then the
            same in all shards.
        complete: whether to compare those outside of the majority with one another, too.
    """
    shard = shard or whole(messages)
    if tolerance == 0:
        return _vote_by_bits(messages, voters, generator, complete, shard)
    return _vote_by_distance(messages, voters, tolerance, complete, shard)


def _vote_by_bits(
    messages: Tensor,
    voters: Sequence[int],
    generator: torch.Generator,
    complete: bool,
    shard: Shard,
) -> Party:
    majority, undecided = len(voters) // 2 + 1, list(voters)
    members: list[int] = []
    company: dict[int, int] = {}
    while undecided if complete else not members and len(undecided) >= majority:
        leader = undecided[int(torch.randint(len(undecided), (), generator=generator))]
        party = _equal_to(messages, leader, undecided)
        unequal = torch.tensor([voter not in party for voter in undecided])
        elsewhere = shard.anywhere(unequal).tolist()
        party = [voter for voter, other in zip(undecided, elsewhere, strict=True) if not other]
        finite = not complete or _finite(messages[leader], shard)
        company |= dict.fromkeys(party, len(party) if finite else 0)
        if len(party) >= majority:
            members = party
        undecided = [voter for voter in undecided if voter not in party]
    return Party(members, company=company)


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


def _vote_by_distance(
    messages: Tensor, voters: Sequence[int], tolerance: float, complete: bool, shard: Shard
) -> Party:
    majority = len(voters) // 2 + 1
    # Shards add up to something between the largest value and their number times it: scaled down,
    # lest that overflow.
    scaled = [ldexp(_largest(messages[voter]), -_HEADROOM) for voter in voters]
    total = shard.add_up(torch.tensor(scaled, dtype=torch.float64)).tolist()
    largest = dict(zip(voters, total, strict=True))
    finite = [voter for voter in voters if isfinite(largest[voter])]
    company = dict.fromkeys(voters, 0)
    if not finite:
        return Party([], company=company)
    # In units of a message that no minority can move: no square overflows or vanishes that matters.
    # A power of two, so that nothing is rounded.
    middle = sorted(largest[voter] for voter in finite)[len(finite) // 2]
    unit = ldexp(0.5, min(frexp(middle)[1] + _HEADROOM, 1024))
    distances, norms = _distances(messages, finite, unit, shard)
    longer = torch.maximum(norms[:, None], norms[None, :])
    relative = distances / longer.clamp_min(torch.finfo(torch.float64).tiny)
    near = relative <= tolerance * (1 + _SLACK)  # what overflowed is near to nobody
    far, _ = bit_sets(~near.fill_diagonal_(True))
    around, _ = bit_sets(near)
    for row, voter in enumerate(finite):
        size = around[row].bit_count()
        while not coverable(far, around[row], around[row].bit_count() - size):
            size -= 1
            if size < majority and not complete:
                break
        company[voter] = size
    kept = [row for row, voter in enumerate(finite) if company[voter] >= majority]
    if not kept:
        return Party([], company=company)
    center = kept[int(distances[kept][:, kept].amax(dim=1).argmin())]
    return Party(
        [finite[center], *(finite[row] for row in kept if row != center)],
        spread=relative[center, kept].max().item(),
        radius=distances[center, kept].max().item() * unit,
        shortest=norms[kept].min().item() * unit,
        company=company,
    )


def _finite(row: Tensor, shard: Shard) -> bool:
    return not shard.anywhere(torch.tensor([not row.isfinite().all()])).any()


def _largest(row: Tensor) -> float:
    """The largest absolute value; not finite if a value is not."""
    if not len(row):
        return 0.0
    low, high = torch.aminmax(row)
    return torch.maximum(-low, high).item()


def _distances(
    messages: Tensor, voters: list[int], unit: float, shard: Shard
) -> tuple[Float[Tensor, "voters voters"], Float[Tensor, " voters"]]:
    """Distances between the voters' messages, and their norms, in these units."""
    squared = torch.zeros(len(voters), len(voters), dtype=torch.float64)
    norms = torch.zeros(len(voters), dtype=torch.float64)
    for columns in column_blocks(messages.shape[1], _COLUMNS):
        rows = messages[voters, columns].double() / unit
        norms += rows.square().sum(dim=1).cpu()
        # Differences, not a Gram matrix: its cancellation loses the digits that replicas differ in.
        squared += torch.stack([(rows - row).square().sum(dim=1) for row in rows]).cpu()
    total = shard.add_up(torch.cat([norms[None], squared])).sqrt()
    return total[1:], total[0]
