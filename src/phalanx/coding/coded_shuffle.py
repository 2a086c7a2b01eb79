"""Coded shuffling: workers that cache rows are sent several rows in one packet."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.utils.data import Sampler

from phalanx.coding.packing import Wanted, pack
from phalanx.randomness import generator


class ShufflePlan(NamedTuple):
    """What is sent so that every worker holds its rows of an epoch.

    Attributes:
        epoch: which.
        packets: `(packets, members)` int32: the rows whose exclusive or is sent, by the member of
            the packet's group that each is for; -1 for members that it holds nothing for.
        first: `(packets,)` int32, the worker that is the first member of the packet's group.
    """

    epoch: int
    packets: Int[Tensor, "packets members"]
    first: Int[Tensor, " packets"]

    @property
    def num_packets(self) -> int:
        """Rows that are sent."""
        return len(self.packets)

    @property
    def num_needed(self) -> int:
        """Rows that workers need and do not hold: what is sent without coding."""
        return int((self.packets >= 0).sum())

    @property
    def gain(self) -> float:
        """Rows that would be sent without coding over those that are; 1 if none are."""
        return self.num_needed / self.num_packets if self.num_packets else 1.0

    @property
    def num_bytes(self) -> int:
        """Bytes of the plan itself, which workers need beside the packets."""
        return self.packets.nbytes + self.first.nbytes

    def of(self, worker: int) -> tuple[Int[Tensor, " mine"], Int[Tensor, "mine members"]]:
        """The packets that hold a row for a worker, and the rows in them, its own in column 0."""
        member, width = (worker - self.first).long(), self.packets.shape[1]
        inside = (member >= 0) & (member < width)
        own = self.packets.gather(1, member.clamp(0, width - 1).unsqueeze(1))
        mine = (inside & (own.squeeze(1) >= 0)).nonzero().flatten()
        others = self.packets[mine].scatter(1, member[mine].unsqueeze(1), -1)
        return mine, torch.cat([own[mine], others], dim=1).long()


class RowCache(NamedTuple):
    """What a worker holds.

    Attributes:
        rows: `(held,)` int64, which rows, in increasing order.
        content: `(held, bytes)` uint8, their bytes.
    """

    rows: Int[Tensor, " held"]
    content: UInt8[Tensor, "held bytes"]

    def read(self, rows: Int[Tensor, " wanted"]) -> UInt8[Tensor, "wanted bytes"]:
        """The bytes of some of the rows.

        Raises:
            ValueError: if one is not held.
        """
        places = torch.searchsorted(self.rows, rows).clamp(max=max(len(self.rows) - 1, 0))
        if len(rows) and (not len(self.rows) or not self.rows[places].equal(rows)):
            raise ValueError("rows must be held by the cache, got some that are not")
        return self.content[places]


@dataclass(frozen=True)
class CodedShuffle:
    """Coded shuffling: every epoch deals all rows out anew, and caches make that cheap.

    Each epoch every worker gets an equal share of the rows at random. It caches its share and, in
    what room is left, other rows. The server sends packets to all: a packet is the exclusive or of
    rows, one for each of several workers, of which each holds all but its own. After the epoch's
    rows are there a worker keeps them, and of what it held before random rows, up to its capacity.

    Guarantee: after each delivery every worker holds exactly the bytes of its rows; there are never
    more packets than rows that are needed; no cache exceeds its capacity.

    With p = (c - q / n) / (q - q / n), where a worker caches c of q rows, packets approach
    `q (1 - p) ((1 - p)^n + n p - 1) / (n p)^2` where rows are many more than sets of workers:
    fewer by `1 + n alpha`, alpha = c / q - 1 / n being the share that is cached beyond the
    worker's own. If a multicast to all costs n / gamma unicasts, that is (alpha + 1 / n) gamma.
    Plans say what is achieved; `ideal_packets` is that law.

    Cost: planning takes about 10 microseconds a needed row and one byte for each worker and row.
    Sets of more than `group_size` workers are too many; larger numbers are cut into groups, each of
    which codes for itself.

    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded shuffling.

    >>> import torch
    >>> from phalanx.coding import CodedShuffle
    >>> shuffle = CodedShuffle(num_workers=4, num_rows=400, cache_fraction=0.5)
    >>> plan = shuffle.plan(epoch=1, caches=shuffle.start())
    >>> plan.num_packets < plan.num_needed / 1.7
    True
    """

    num_workers: int = 5
    """Workers (n in the paper)."""

    num_rows: int = 1000
    """Rows of the data set (q in the paper)."""

    cache_fraction: float = 0.4
    """Share of all rows that a worker can hold, its own of the epoch among them: alpha + 1 / n in
    the paper, so at least 1 / n."""

    group_size: int = 10
    """Workers that are coded for together, at most."""

    seed: int = 0
    """Which random shares and caches."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")
        if self.num_rows < self.num_workers:
            raise ValueError(
                f"num_rows must be at least num_workers = {self.num_workers}, got {self.num_rows}"
            )
        if not self.cache_fraction <= 1 or self.capacity < -(-self.num_rows // self.num_workers):
            raise ValueError(
                "cache_fraction must be at most 1 and hold a worker's own "
                f"{-(-self.num_rows // self.num_workers)} of {self.num_rows} rows, got "
                f"{self.cache_fraction}"
            )
        if not 1 <= self.group_size <= 62:
            raise ValueError(f"group_size must be from 1 to 62, got {self.group_size}")

    @property
    def capacity(self) -> int:
        """Rows that a worker can hold (c in the paper)."""
        return math.floor(self.cache_fraction * self.num_rows + 1e-9)

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """The workers that are coded for together: as few groups as can be, of about one size."""
        number = -(-self.num_workers // self.group_size)
        ends = [self.num_workers * index // number for index in range(number + 1)]
        return tuple(range(start, end) for start, end in pairwise(ends))

    def share(self, worker: int, epoch: int) -> Int[Tensor, " share"]:
        """The rows that a worker gets in an epoch, in increasing order; sizes differ by 1 at most.

        Everybody who knows the seed knows them.
        """
        return (self.owners(epoch) == worker).nonzero().flatten()

    def owners(self, epoch: int) -> Int[Tensor, " rows"]:
        """Whose share each row is in, in an epoch."""
        order = torch.randperm(self.num_rows, generator=generator(self.seed, "shuffle", epoch))
        owners = torch.empty(self.num_rows, dtype=torch.int64)
        owners[order] = torch.arange(self.num_rows) * self.num_workers // self.num_rows
        return owners

    def start(self) -> Bool[Tensor, "workers rows"]:
        """Who holds what in epoch 0: the worker's share, and random rows up to its capacity."""
        return self.update(0, torch.ones(self.num_workers, self.num_rows, dtype=torch.bool))

    def update(
        self, epoch: int, caches: Bool[Tensor, "workers rows"]
    ) -> Bool[Tensor, "workers rows"]:
        """Who holds what once an epoch's rows are there.

        Args:
            epoch: which.
            caches: who held what before.
        """
        kept = torch.zeros_like(caches)
        for worker, held in enumerate(caches):
            kept[worker, self._kept(worker, epoch, held.nonzero().flatten())] = True
        return kept

    def plan(self, epoch: int, caches: Bool[Tensor, "workers rows"]) -> ShufflePlan:
        """What is sent for an epoch.

        Args:
            epoch: which.
            caches: who holds what before, from `start` or `update`.

        Raises:
            ValueError: if `caches` is not of this shape.
        """
        if caches.shape != (self.num_workers, self.num_rows):
            raise ValueError(
                f"caches must have shape ({self.num_workers}, {self.num_rows}), got "
                f"{tuple(caches.shape)}"
            )
        owners = self.owners(epoch)
        needed = ~caches.gather(0, owners.unsqueeze(0)).squeeze(0)
        width = max(map(len, self.groups))
        packets, first = [], []
        for group in self.groups:
            rows = (needed & (owners >= group.start) & (owners < group.stop)).nonzero().flatten()
            held = caches[group.start : group.stop, rows]
            table = _table(rows, owners[rows] - group.start, held, width)
            packets.append(table)
            first.append(torch.full((len(table),), group.start, dtype=torch.int32))
        return ShufflePlan(epoch, torch.cat(packets), torch.cat(first))

    def fill(self, worker: int, rows: UInt8[Tensor, "rows bytes"]) -> RowCache:
        """What a worker is given before the first epoch; see `start`."""
        held = self.start()[worker].nonzero().flatten()
        return RowCache(held, rows[held])

    def encode(
        self, plan: ShufflePlan, rows: UInt8[Tensor, "rows bytes"]
    ) -> UInt8[Tensor, "packets bytes"]:
        """The packets' bytes. Cost: one pass over the rows that are needed."""
        return _exclusive_or(plan.packets, rows.shape[1], lambda chosen: rows[chosen])

    def decode(
        self,
        plan: ShufflePlan,
        worker: int,
        packets: UInt8[Tensor, "packets bytes"],
        cache: RowCache,
    ) -> RowCache:
        """What a worker holds after an epoch's delivery: its share, and what it keeps.

        Args:
            plan: the epoch's.
            worker: who.
            packets: from `encode`.
            cache: what it held before.

        Raises:
            ValueError: if the packets are not the plan's, or the cache is not what it was to be.
        """
        if packets.shape != (plan.num_packets, cache.content.shape[1]):
            raise ValueError(
                f"packets must have shape ({plan.num_packets}, {cache.content.shape[1]}), got "
                f"{tuple(packets.shape)}"
            )
        mine, members = plan.of(worker)
        others = _exclusive_or(members[:, 1:], packets.shape[1], cache.read)
        rows, order = torch.cat([cache.rows, members[:, 0]]).sort()
        content = torch.cat([cache.content, packets[mine] ^ others])[order]
        kept = self._kept(worker, plan.epoch, cache.rows)
        return RowCache(kept, RowCache(rows, content).read(kept))

    @property
    def ideal_packets(self) -> float:
        """Packets of an epoch where rows are many more than sets of workers.

        The rows that are needed and held by the same members of a group are as many for each
        member then, and no packet goes with a member missing. In one group this is the paper's
        formula. Its caches are independent; those after some epochs are nearly so.
        """
        q, n = self.num_rows, self.num_workers
        p = (self.capacity - q / n) / (q - q / n) if n > 1 else 1.0
        lists = q / n * (1 - self.capacity / q)  # rows that a worker needs
        total = 0.0
        for m in map(len, self.groups):
            for s in range(1, m + 1):
                # The worker that had the row before is in the set, or outside of the group.
                before = (s - 1) / (n - 1) * p ** max(s - 2, 0) if n > 1 else 0.0
                outside = (n - m) / (n - 1) * p ** (s - 1) if n > 1 else 0.0
                total += math.comb(m, s) * lists * (before + outside) * (1 - p) ** (m - s)
        return total

    @property
    def ideal_gain(self) -> float:
        """Rows that are needed over `ideal_packets`; 1 if none are needed."""
        needed = self.num_rows * (1 - self.capacity / self.num_rows)
        return needed / self.ideal_packets if self.ideal_packets else 1.0

    def _kept(self, worker: int, epoch: int, held: Int[Tensor, " held"]) -> Int[Tensor, " kept"]:
        """The rows in a worker's cache once an epoch's are there, in increasing order."""
        share = self.share(worker, epoch)
        spare = held[torch.isin(held, share, invert=True)]
        source = generator(self.seed, "cache", epoch, worker)
        chosen = torch.randperm(len(spare), generator=source)[: self.capacity - len(share)]
        return torch.cat([share, spare[chosen]]).sort().values


def _table(rows: Tensor, members: Tensor, held: Tensor, width: int) -> Tensor:
    """The packets of a group, one row each; see `ShufflePlan.packets`."""
    holders = (held.long() << torch.arange(len(held)).unsqueeze(1)).sum(dim=0)
    wanted = map(Wanted, members.tolist(), rows.tolist(), holders.tolist())
    packets = pack(list(wanted))
    table = [[packet.get(member, -1) for member in range(width)] for packet in packets]
    return torch.tensor(table, dtype=torch.int32).reshape(-1, width)


def _exclusive_or(table: Tensor, width: int, read: Callable[[Tensor], Tensor]) -> Tensor:
    """The exclusive or of the rows in each line of a table; `read` gives the rows' bytes."""
    combined = torch.zeros(len(table), width, dtype=torch.uint8)
    for column in table.T:
        there = column >= 0
        combined[there] ^= read(column[there].long())
    return combined


class CodedShuffleSampler(Sampler[int]):
    """A worker's rows of an epoch in random order, for a `DataLoader`; as `DistributedSampler`.

    It needs no caches and no plan: everybody who knows the seed knows the shares.

    >>> from phalanx.coding import CodedShuffle, CodedShuffleSampler
    >>> sampler = CodedShuffleSampler(CodedShuffle(num_workers=4, num_rows=40), worker=1)
    >>> sampler.set_epoch(3)
    >>> sorted(sampler) == sampler.shuffle.share(1, 3).tolist()
    True
    """

    def __init__(self, shuffle: CodedShuffle, worker: int) -> None:
        """Starts at epoch 0.

        Args:
            shuffle: deals the rows out.
            worker: whose.

        Raises:
            ValueError: if there is no such worker.
        """
        if not 0 <= worker < shuffle.num_workers:
            raise ValueError(f"worker must be from 0 to {shuffle.num_workers - 1}, got {worker}")
        self.shuffle, self.worker, self._epoch = shuffle, worker, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose rows come next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        share = self.shuffle.share(self.worker, self._epoch)
        source = generator(self.shuffle.seed, "order", self._epoch, self.worker)
        return iter(share[torch.randperm(len(share), generator=source)].tolist())

    def __len__(self) -> int:
        return len(self.shuffle.share(self.worker, self._epoch))
