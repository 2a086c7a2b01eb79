"""Least-squares decoders of approximate codes, three of growing cost.

All take the part of the assignment that arrived, `(arrived, partitions)`, and give back by what
each message is multiplied, so that every partition counts about once in the sum. What is left is
`err = |coefficients @ held - 1|^2`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Decoding = Literal["one-step", "optimal", "algorithmic"]


def one_step(held: Float[Tensor, "arrived partitions"], load: float) -> Float[Tensor, " arrived"]:
    """The same number for all, right on average: `partitions / (arrived * load)`.

    Args:
        held: ones where a worker that arrived holds a partition.
        load: partitions that a worker holds, on average over all workers.
    """
    arrived, partitions = held.shape
    return torch.full((arrived,), partitions / (arrived * load), dtype=held.dtype)


def optimal(held: Float[Tensor, "arrived partitions"]) -> Float[Tensor, " arrived"]:
    """The shortest of those that leave least: least squares, O(arrived^2 partitions)."""
    ones = torch.ones(held.shape[1], dtype=held.dtype)
    solution: Tensor = torch.linalg.lstsq(held.T, ones, driver="gelsd").solution
    return solution


def algorithmic(
    held: Float[Tensor, "arrived partitions"], iterations: int
) -> Float[Tensor, " arrived"]:
    """So many steps of gradient descent towards `optimal`; each leaves no more than the last.

    Before the first step all of `err = partitions` is left.
    """
    scale = torch.linalg.matrix_norm(held, ord=2).square()
    found = torch.zeros(len(held), dtype=held.dtype)
    for _ in range(iterations if scale > 0 else 0):
        found += held @ (1 - found @ held) / scale
    return found
