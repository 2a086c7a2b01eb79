"""What reached the server in a round: the decoded update, and the messages one by one."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Num
from torch import Tensor


class Received(NamedTuple):
    """What a server step is given of a round.

    Attributes:
        update: `(num_vectors dim,)`, what the code decoded, or the rule made of the messages.
        messages: `(workers, num_vectors dim)`, one by one; rows not in `usable` hold anything.
        usable: `(workers,)` bool, whose message arrived and is not wrong for certain.
        weights: `(workers,)` float64, how much each counts; None if all count alike.
        clients: whose messages they are, by worker.
        num_clients: clients in all.
        averaged: whether the update is the mean of the usable messages, so that it is larger where
            some are missing; a code's does not depend on who answered.
    """

    update: Float[Tensor, " width"]
    messages: Num[Tensor, "workers width"]
    usable: Bool[Tensor, " workers"]
    weights: Float[Tensor, " workers"] | None
    clients: Sequence[int]
    num_clients: int
    averaged: bool = False
