"""Plan of a coded shuffle: what it sends, and what its workers hold."""

from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


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
