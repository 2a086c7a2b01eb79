"""Disjoint shards of a data set for teachers."""

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.randomness import generator


def deal_shards(num_records: int, num_teachers: int, seed: int) -> Int[Tensor, "teachers size"]:
    """Row numbers of every teacher: equally many, and no row twice.

    Rows are dealt by their number alone. Dealing by class would make shards alike, but then one
    label that changes moves other records from teacher to teacher, and the sensitivity of the vote
    is no longer that of one teacher. Up to `num_teachers - 1` rows are left over, and never used.

    Args:
        num_records: N, a public number.
        num_teachers: T, from 1 to N.
        seed: of the order.

    Returns:
        `(T, N // T)`, int64.

    Raises:
        ValueError: if there are more teachers than records.

    >>> from phalanx.privacy import deal_shards
    >>> deal_shards(7, 3, seed=0).flatten().unique().numel()
    6
    """
    if not 1 <= num_teachers <= num_records:
        raise ValueError(
            f"num_teachers must be from 1 to the {num_records} records, got {num_teachers}"
        )
    order = torch.randperm(num_records, generator=generator(seed, "shards"))
    size = num_records // num_teachers
    return order[: num_teachers * size].view(num_teachers, size)
