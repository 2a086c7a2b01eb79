"""Coded shuffling: workers that cache rows are sent several rows in one packet."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from phalanx.checks import require_at_least, require_between
from phalanx.coded_computation.packing import Wanted, pack
from phalanx.coded_computation.shuffle_plan import RowCache, ShufflePlan
from phalanx.randomness import generator


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
    >>> from phalanx.coded_computation import CodedShuffle
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
        require_at_least(1, num_workers=self.num_workers)
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
        require_between(1, 62, group_size=self.group_size)

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
