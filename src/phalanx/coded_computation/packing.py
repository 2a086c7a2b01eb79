"""Index coding: packets of rows whose receivers each hold all rows but their own."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class Wanted(NamedTuple):
    """A row that a member of a group needs.

    Attributes:
        member: who needs it, counted from 0 within the group.
        row: the row.
        holders: the members that hold it, as a bit mask; not the one that needs it.
    """

    member: int
    row: int
    holders: int


Packet = dict[int, int]
"""The rows whose exclusive or is sent, by the member that each is for."""

Queues = dict[int, list[Wanted]]
"""Rows that wait, by the member that needs them."""


def pack(wanted: Sequence[Wanted]) -> list[Packet]:
    """Packets that give every member what it needs; not the fewest, which is hard to find.

    Cost: about 10 microseconds a row.
    """
    packets, left = _pack_sets(wanted)
    return packets + _pack_greedily(left)


def _pack_sets(wanted: Sequence[Wanted]) -> tuple[list[Packet], list[Wanted]]:
    """Packets for whole sets of members, from the largest sets down, and the rows left over.

    A row belongs to the set of its holders and the member that needs it. Each set sends packets
    until one member needs no more of its rows. The rows left go on to sets with one member less,
    each to the one that is shortest of rows for its member: there it completes a packet.
    """
    queues: dict[int, Queues] = defaultdict(lambda: defaultdict(list))
    for one in wanted:
        queues[one.holders | 1 << one.member][one.member].append(one)
    largest = max((members.bit_count() for members in queues), default=0)
    packets: list[Packet] = []
    for size in range(largest, 1, -1):
        for members in [found for found in queues if found.bit_count() == size]:
            queue = queues.pop(members)
            if len(queue) == size:
                packets += _whole_packets(queue)
            _pass_on(queue, members, queues)
    left = [one for queue in queues.values() for rows in queue.values() for one in rows]
    return packets, left


def _whole_packets(queue: Queues) -> list[Packet]:
    """Takes packets for all members out of a set's queue, until one has no row left."""
    number = min(map(len, queue.values()))
    taken = [[rows.pop() for _ in range(number)] for rows in queue.values()]
    return [{one.member: one.row for one in rows} for rows in zip(*taken, strict=True)]


def _pass_on(queue: Queues, members: int, queues: dict[int, Queues]) -> None:
    """Moves what is left in a set's queue to those of sets with one member less."""
    size = members.bit_count() - 1
    for member in sorted(queue, key=lambda one: -len(queue[one])):
        smaller = [queues[found] for found in _without(members, kept=member)]
        for one in queue[member]:
            shortages = [_shortage(found, member, size) for found in smaller]
            smaller[shortages.index(max(shortages))][member].append(one)


def _shortage(queue: Queues, member: int, size: int) -> int:
    """How many rows a member has less than the mean of the set's, times their number."""
    return sum(map(len, queue.values())) - size * len(queue.get(member, ()))


def _without(members: int, kept: int) -> list[int]:
    """The sets that lack one of the members, other than the one that is kept."""
    others = members & ~(1 << kept)
    return [members & ~(1 << one) for one in range(others.bit_length()) if others >> one & 1]


def _pack_greedily(wanted: Sequence[Wanted]) -> list[Packet]:
    """Packets grown one by one, each from the member that needs most.

    A packet takes in the member whose row is held by all in it, who hold all its rows, and who
    leaves most members that can still join.
    """
    queues: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    number: dict[int, int] = defaultdict(int)
    for one in wanted:
        queues[one.member][one.holders].append(one.row)
        number[one.member] += 1
    packets: list[Packet] = []
    while any(number.values()):
        member = max(number, key=number.__getitem__)
        holders = max(queues[member], key=lambda one: (one.bit_count(), len(queues[member][one])))
        packet: Packet = {}
        inside, common = 0, holders
        chosen: tuple[int, int] | None = (member, holders)
        while chosen is not None:
            member, holders = chosen
            packet[member] = _take(queues[member], holders)
            number[member] -= 1
            inside, common = inside | 1 << member, common & holders
            chosen = _best(queues, number, inside, common)
        packets.append(packet)
    return packets


def _best(
    queues: dict[int, dict[int, list[int]]], number: dict[int, int], inside: int, common: int
) -> tuple[int, int] | None:
    """The member that joins a packet, and the holders of its row; None if nobody can."""
    fitting = [
        ((common & holders).bit_count(), number[member], member, holders)
        for member, queue in queues.items()
        if common >> member & 1
        for holders in queue
        if holders & inside == inside
    ]
    return max(fitting)[2:] if fitting else None


def _take(queue: dict[int, list[int]], holders: int) -> int:
    row = queue[holders].pop()
    if not queue[holders]:
        del queue[holders]
    return row
