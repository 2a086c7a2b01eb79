"""Knowledge that colluding Byzantine workers have of a round."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Rule = Callable[[Tensor], Tensor]
"""A server's rule: the messages of all workers, `(workers, dim)`, to their aggregate, `(dim,)`.

One with an attribute `needs_distances_only` that is true weighs messages by their distances alone,
as many rules of `phalanx.aggregation` do; it can then be tried at the price of its algebra.
"""


def column_mean(messages: Float[Tensor, "workers dim"]) -> Float[Tensor, " dim"]:
    """The rule that is attacked where no other is known: the plain mean."""
    return messages.mean(dim=0)


class AdversaryKnowledge(NamedTuple):
    """Knowledge that the Byzantine workers of a round share, before they send.

    Attributes:
        honest: messages of the honest workers, `(honest, dim)`, by id.
        workers: ids of the honest workers, one per row of `honest`.
        num_byzantine: how many workers are Byzantine in this round.
        aggregate: the rule of the server, from the messages of all workers to their aggregate.
        generator: source of randomness; None draws from torch's global one.
        encoding: of a linear code, what each worker multiplies each partition's gradient by; None
            if it is not known, or messages are not linear.
    """

    honest: Float[Tensor, "honest dim"]
    workers: tuple[int, ...]
    num_byzantine: int
    aggregate: Rule = column_mean
    generator: torch.Generator | None = None
    encoding: Float[Tensor, "all_workers partitions"] | None = None
