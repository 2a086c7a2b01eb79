"""A round of one worker among processes of `torch.distributed`."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from phalanx.compression.averaging import Memory, average
from phalanx.compression.base import Compressor
from phalanx.compression.collectives import AllGather, AllReduce


def communicate(
    compressor: Compressor,
    gradients: Mapping[str, Tensor],
    memory: Memory,
    *,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> tuple[dict[str, Tensor], Memory]:
    """One round of this process with the others of its group: what `simulate` does in one.

    Collectives are blocking and in the same order everywhere, on gloo and NCCL. Call it on all
    processes with the same names and shapes, once a step; nothing is pickled.

    Args:
        compressor: what all processes use.
        gradients: this process's tensors by name, on the device that the group works with.
        memory: what this process remembers; `Memory()` before the first round.
        seed: of the run.
        group: the processes; all of them by default.

    Returns:
        The mean, and the next memory.

    Raises:
        NotFiniteError: on all processes, naming those with NaN or infinity.
        WireError: if the bytes of another process are not a message.
    """
    size = dist.get_world_size(group)
    rank = dist.get_rank(group)
    worker = average(compressor, gradients, memory, seed=seed, worker=rank, num_workers=size)
    answer: Tensor | list[Tensor] | None = None
    while True:
        try:
            request = worker.send(answer) if answer is not None else next(worker)
        except StopIteration as done:
            mean, following = done.value
            return mean, following
        if isinstance(request, AllReduce):
            answer = _all_reduce(request, group)
        else:
            answer = _all_gather(request, size, group)


def _all_reduce(request: AllReduce, group: dist.ProcessGroup | None) -> Tensor:
    total = request.tensor.clone()
    operation = dist.ReduceOp.MAX if request.largest else dist.ReduceOp.SUM
    dist.all_reduce(total, operation, group=group)
    return total


def _all_gather(request: AllGather, size: int, group: dist.ProcessGroup | None) -> list[Tensor]:
    """Every process's bytes; collectives want equal lengths, so shorter ones are filled up."""
    own = request.tensor
    lengths = [own.numel()] * size
    if not request.equal:
        count = own.new_tensor([own.numel()], dtype=torch.int64)
        lengths = [int(one) for one in _gathered(count, size, group)]
    padded = torch.nn.functional.pad(own, (0, max(lengths) - own.numel()))
    rows = _gathered(padded, size, group)
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def _gathered(tensor: Tensor, size: int, group: dist.ProcessGroup | None) -> list[Tensor]:
    """The tensors of all processes, of equal lengths."""
    rows = [torch.empty_like(tensor) for _ in range(size)]
    dist.all_gather(rows, tensor, group=group)
    return rows
