"""Collectives among the processes of `torch.distributed`."""

import math
from collections.abc import Generator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from phalanx.communication.collectives import AllGather, AllReduce, AllToAll, Answer, Request
from phalanx.errors import naming

Result = TypeVar("Result")


class ProcessGroupCollectives:
    """The collectives of a process group, and the bytes that this process sent for them.

    Attributes:
        group: the processes; None for all.
        rank: of this one.
        size: how many there are.
        payload_bytes: what this process handed to collectives so far: messages, lengths, flags.
        wire_bytes: what it sent for that, if collectives are rings: of `b` bytes to be added,
            `2 b (n - 1) / n`; of `b` to be gathered, filled up to the longest, `b (n - 1)`; of what
            is for each process, all but its own.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.payload_bytes = 0
        self.wire_bytes = 0.0

    def run(self, worker: Generator[Request, Answer, Result]) -> Result:
        """Does what a worker's part of a round asks for, and returns what it ends with.

        Collectives are blocking, one after the other.

        Raises:
            RankLostError: if a process is gone, or silent for longer than the group's timeout.
        """
        answer: Answer | None = None
        while True:
            try:
                request = worker.send(answer) if answer is not None else next(worker)
            except StopIteration as done:
                result: Result = done.value
                return result
            if isinstance(request, AllReduce):
                answer = self.all_reduce(request)
            elif isinstance(request, AllGather):
                answer = self.all_gather(request)
            else:
                answer = self.all_to_all(request)

    def all_reduce(self, request: AllReduce) -> Tensor:
        """The sum, or the largest values, of all processes' tensors."""
        total = request.tensor.clone()
        operation = dist.ReduceOp.MAX if request.largest else dist.ReduceOp.SUM
        with naming(what=f"an all-reduce of {total.numel()} values"):
            dist.all_reduce(total, operation, group=self.group)
        self._count(total.nbytes, request.wire_bytes(self.size))
        return total

    def all_gather(self, request: AllGather) -> list[Tensor]:
        """All processes' bytes; as collectives want equal lengths, shorter ones are filled up."""
        own = request.tensor
        lengths = [own.numel()] * self.size
        if not request.equal:
            count = own.new_tensor([own.numel()], dtype=torch.int64)
            most = math.inf if request.most is None else request.most
            stated = [int(one) for one in self._gathered(count)]
            lengths = [one if 0 <= one <= most else 0 for one in stated]
            self._count(8, 8.0 * (self.size - 1))
        padded = torch.nn.functional.pad(own, (0, max(lengths) - own.numel()))
        rows = self._gathered(padded)
        self._count(own.numel(), 1.0 * padded.numel() * (self.size - 1))
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def all_to_all(self, request: AllToAll) -> list[Tensor]:
        """What every process has for this one."""
        lengths, own = list(request.lengths), request.lengths[self.rank]
        found = request.tensor.new_empty(own * self.size)
        with naming(what=f"an all-to-all of {sum(lengths)} bytes"):
            dist.all_to_all_single(
                found, request.tensor, [own] * self.size, lengths, group=self.group
            )
        self._count(sum(lengths), float(sum(lengths) - own))
        return list(found.split(own)) if own else [found] * self.size

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, of equal lengths."""
        rows = [torch.empty_like(tensor) for _ in range(self.size)]
        with naming(what=f"an all-gather of {tensor.numel()} values"):
            dist.all_gather(rows, tensor, group=self.group)
        return rows

    def _count(self, payload: int, wire: float) -> None:
        self.payload_bytes += payload
        self.wire_bytes += wire
