"""Votes by bits: whose messages agree, and are they more than half."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from phalanx.coding.columns import blocks as column_blocks

_COMPARED = 65_536  # words at a time: the leader's block is read from the cache, not again
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def equal_majority(
    messages: Float[Tensor, "workers width"], voters: Sequence[int], generator: torch.Generator
) -> list[int]:
    """The voters whose messages agree to the bit, if they are more than half; else nobody.

    Args:
        messages: one row a worker; 0 and -0 differ, and so do NaNs of different bits.
        voters: the workers that take part.
        generator: draws the worker that the others are compared with, so that nobody can arrange
            for more comparisons than two on average.

    Cost: one pass over the messages where all agree, two on average whatever the liars do.

    >>> import torch
    >>> from phalanx.coding import equal_majority
    >>> messages = torch.tensor([[6.0], [-100.0], [6.0]])
    >>> equal_majority(messages, [0, 1, 2], torch.Generator())
    [0, 2]
    """
    majority, undecided = len(voters) // 2 + 1, list(voters)
    while len(undecided) >= majority:
        leader = undecided[int(torch.randint(len(undecided), (), generator=generator))]
        party = _equal_to(messages, leader, undecided)
        if len(party) >= majority:
            return party
        undecided = [voter for voter in undecided if voter not in party]
    return []


def _equal_to(messages: Tensor, leader: int, voters: list[int]) -> list[int]:
    """Those of the voters that sent the leader's bits; one pass, which the unequal leave early."""
    bits = messages.view(_INTEGERS[messages.element_size()])  # tells 0 from -0, and NaN from NaN
    # On the CPU NumPy compares three times as fast as torch, and lets go of the GIL meanwhile.
    rows: Any = bits if bits.is_cuda else _words(bits.numpy())
    equal: Callable[[Any, Any], bool] = torch.equal if bits.is_cuda else np.array_equal
    party = set(voters)

    def compare(columns: slice) -> None:
        ours = rows[leader, columns]
        for voter in party - {leader}:
            if not equal(rows[voter, columns], ours):
                party.discard(voter)

    pieces = list(column_blocks(rows.shape[1], _COMPARED))
    if len(pieces) > 1 and not bits.is_cuda:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(compare, pieces))
    else:
        for columns in pieces:
            compare(columns)
    return sorted(party)


def _words(table: NDArray[Any]) -> NDArray[Any]:
    """The rows as 64-bit words, of which there are fewer to compare, where they come out even."""
    dense = table.shape[1] > 0 and table.strides[1] == table.itemsize
    return table.view(np.uint64) if dense and table[0].nbytes % 8 == 0 else table
