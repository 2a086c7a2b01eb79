"""A round of all workers in one process."""

from collections.abc import Generator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from phalanx.communication.collectives import AllGather, AllToAll, Answer, Request
from phalanx.compression.averaging import Memory, average
from phalanx.compression.base import Compressor

Result = TypeVar("Result")


def simulate(
    compressor: Compressor,
    gradients: Sequence[Mapping[str, Tensor]],
    memories: Sequence[Memory],
    *,
    seed: int = 0,
) -> tuple[list[dict[str, Tensor]], list[Memory]]:
    """One round of several workers, in step: what `communicate` does among processes.

    Args:
        compressor: what all workers use.
        gradients: each worker's tensors by name; the same names and shapes in all.
        memories: what each worker remembers; `Memory()` before the first round.
        seed: of the run.

    Returns:
        The mean as each worker knows it (all are equal), and the next memories.

    Raises:
        NotFiniteError: naming the workers with NaN or infinity; no memory has changed.
        ValueError: if there is not one memory a worker.

    >>> from phalanx.compression import TopK
    >>> rows = [{"w": torch.tensor([4.0, 1.0])}, {"w": torch.tensor([1.0, 2.0])}]
    >>> means, memories = simulate(TopK(ratio=0.5), rows, [Memory(), Memory()])
    >>> means[0]["w"]
    tensor([2., 1.])
    """
    if len(gradients) != len(memories) or not gradients:
        raise ValueError(f"memories must be one a worker, got {len(memories)} of {len(gradients)}")
    workers = [
        average(compressor, tensors, memory, seed=seed, worker=worker, num_workers=len(gradients))
        for worker, (tensors, memory) in enumerate(zip(gradients, memories, strict=True))
    ]
    results = together(workers)
    return [mean for mean, _ in results], [memory for _, memory in results]


def together(workers: Sequence[Generator[Request, Answer, Result]]) -> list[Result]:
    """What the workers' parts of a round end with, when they ask for collectives in step."""
    answers: Sequence[Answer | None] = [None] * len(workers)
    while True:
        asked, results = [], []
        for worker, answer in zip(workers, answers, strict=True):
            try:
                asked.append(worker.send(answer) if answer is not None else next(worker))
            except StopIteration as done:
                results.append(done.value)
        if results:
            return results
        answers = _answers(asked)


def _answers(asked: Sequence[Request]) -> Sequence[Answer]:
    """What the network would answer to each worker: sums in the order of the workers."""
    tensors = [request.tensor for request in asked]
    first = asked[0]
    if isinstance(first, AllGather):
        return [tensors] * len(tensors)
    if isinstance(first, AllToAll):
        pieces = [tensor.split(first.lengths) for tensor in tensors]
        return [list(column) for column in zip(*pieces, strict=True)]
    if first.largest:
        return [torch.stack(tensors).amax(dim=0)] * len(tensors)
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return [total] * len(tensors)
