"""Collectives among workers in one process."""

from collections.abc import Generator, Sequence
from typing import TypeVar

import torch

from phalanx.communication.collectives import AllGather, AllToAll, Answer, Request

Result = TypeVar("Result")


def simulate_collectives(
    workers: Sequence[Generator[Request, Answer, Result]],
) -> list[Result]:
    """The results of all workers' parts of a round, which ask for collectives in step."""
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
    """The answer to each worker; sums are in the order of the workers."""
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
