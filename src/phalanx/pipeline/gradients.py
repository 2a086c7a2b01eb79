"""Compressed gradient averaging among replicas of a pipeline stage."""

from collections.abc import Mapping

import torch.distributed as dist
from torch import nn

from phalanx.compression import Compressor, TensorStates, communicate


def average_gradients(
    module: nn.Module,
    compressor: Compressor,
    memory: TensorStates,
    *,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> TensorStates:
    """Puts the compressed mean over the processes of a group in the place of a module's gradients.

    Call it after the backward pass and before the optimizer's step, on all processes that hold the
    same stage. `ErrorFeedback` around a biased compressor keeps what was not sent.

    Args:
        module: whose parameters have gradients; those without are left alone, on all processes.
        compressor: what all processes use.
        memory: what this process remembers; `TensorStates()` before the first step.
        seed: of the run.
        group: the processes that hold this stage; all of them by default.

    Returns:
        The next memory.

    Raises:
        NotFiniteError: on all processes, naming those with NaN or infinity.
        WireError: if the bytes of another process are not a message.
    """
    found: Mapping[str, nn.Parameter] = {
        name: weight for name, weight in module.named_parameters() if weight.grad is not None
    }
    gradients = {name: weight.grad for name, weight in found.items() if weight.grad is not None}
    means, memory = communicate(compressor, gradients, memory, seed=seed, group=group)
    for name, mean in means.items():
        found[name].grad = mean
    return memory
