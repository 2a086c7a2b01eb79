"""Compressed averaging of all workers in one process."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from phalanx.communication import simulate_collectives
from phalanx.compression.averaging import TensorStates, average
from phalanx.compression.base import Compressor


def simulate(
    compressor: Compressor,
    gradients: Sequence[Mapping[str, Tensor]],
    memories: Sequence[TensorStates],
    *,
    seed: int = 0,
) -> tuple[list[dict[str, Tensor]], list[TensorStates]]:
    """One round of several workers, in step: what `communicate` does among processes.

    Args:
        compressor: what all workers use.
        gradients: each worker's tensors by name; the same names and shapes in all.
        memories: what each worker remembers; `TensorStates()` before the first round.
        seed: of the run.

    Returns:
        The mean as each worker knows it (all are equal), and the next memories.

    Raises:
        NotFiniteError: naming the workers with NaN or infinity; no memory has changed.
        ValueError: if there is not one memory per worker.

    >>> import torch
    >>> from phalanx.compression import TopK
    >>> rows = [{"w": torch.tensor([4.0, 1.0])}, {"w": torch.tensor([1.0, 2.0])}]
    >>> means, memories = simulate(TopK(ratio=0.5), rows, [TensorStates(), TensorStates()])
    >>> means[0]["w"]
    tensor([2., 1.])
    """
    if len(gradients) != len(memories) or not gradients:
        raise ValueError(
            f"memories must be one per worker, got {len(memories)} of {len(gradients)}"
        )
    workers = [
        average(compressor, tensors, memory, seed=seed, worker=worker, num_workers=len(gradients))
        for worker, (tensors, memory) in enumerate(zip(gradients, memories, strict=True))
    ]
    results = simulate_collectives(workers)
    return [mean for mean, _ in results], [memory for _, memory in results]
