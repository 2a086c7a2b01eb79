"""Compressed averaging among processes of `torch.distributed`."""

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor

from phalanx.communication import ProcessGroupCollectives
from phalanx.compression.averaging import TensorStates, average
from phalanx.compression.base import Compressor


def communicate(
    compressor: Compressor,
    gradients: Mapping[str, Tensor],
    memory: TensorStates,
    *,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> tuple[dict[str, Tensor], TensorStates]:
    """One round of this process with the others of its group: what `simulate` does in one.

    Collectives are blocking and in the same order everywhere, on gloo and NCCL. Call it on all
    processes with the same names and shapes, once a step; nothing is pickled.

    Args:
        compressor: what all processes use.
        gradients: this process's tensors by name, on the device that the group works with.
        memory: what this process remembers; `TensorStates()` before the first round.
        seed: of the run.
        group: the processes; all of them by default.

    Returns:
        The mean, and the next memory.

    Raises:
        NotFiniteError: on all processes, naming those with NaN or infinity.
        WireError: if the bytes of another process are not a message.
        RankLostError: if a process is gone, or silent for longer than the group's timeout.
    """
    collectives = ProcessGroupCollectives(group)
    worker = average(
        compressor,
        gradients,
        memory,
        seed=seed,
        worker=collectives.rank,
        num_workers=collectives.size,
    )
    return collectives.run(worker)
