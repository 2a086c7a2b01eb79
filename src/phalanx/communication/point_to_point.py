"""Point-to-point exchange of tensors among all ranks of a process group."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from phalanx.errors import naming


class Swap:
    """Tensors under way between this rank and all others."""

    def __init__(self, pending: Sequence[tuple[int | None, Any]]) -> None:
        self._pending = list(pending)

    def wait(self) -> None:
        """Blocks until all has been received and sent; on a GPU, makes the current stream wait.

        Raises:
            RankLostError: if a rank is gone, or silent for longer than the group's timeout.
        """
        while self._pending:
            peer, work = self._pending[0]
            with naming(peer):
                work.wait()
            self._pending.pop(0)


class Peers:
    """The ranks of a process group.

    Whatever passes between two ranks passes between them alone: no rank adds up or hands on what
    others sent, as ring collectives have it, so that nobody can change it on the way.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        known = dist.group.WORLD if group is None else group
        assert known is not None  # get_rank has seen to it
        self._global = [dist.get_global_rank(known, rank) for rank in range(self.size)]

    def swap(self, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]) -> Swap:
        """Sends `outgoing[r]` to every rank `r`, and receives `incoming[r]` from it.

        Both must stay as they are until the swap has been waited for. Empty tensors are not sent.
        """
        incoming[self.rank].copy_(outgoing[self.rank])
        # Every rank begins with its neighbour, so that not all of them send to rank 0 at first.
        others = [(self.rank + step) % self.size for step in range(1, self.size)]
        ends: list[tuple[Any, Tensor, int]]
        ends = [(dist.irecv, incoming[rank], rank) for rank in reversed(others)]
        ends += [(dist.isend, outgoing[rank], rank) for rank in others]
        ends = [end for end in ends if end[1].numel()]
        operations = [
            dist.P2POp(way, tensor, self._global[rank], self.group) for way, tensor, rank in ends
        ]
        with naming():
            works = dist.batch_isend_irecv(operations) if operations else []
        # Gloo gives a work for each operation, NCCL one for all.
        alone = len(works) == len(ends)
        ranks = [rank for _, _, rank in ends] if alone else [None] * len(works)
        return Swap(list(zip(ranks, works, strict=True)))

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks, of one shape, stacked in the order of the ranks."""
        part = part.contiguous()
        told = part.new_empty(self.size, *part.shape)
        self.swap([part] * self.size, list(told)).wait()
        return told
