"""Adaptive robust clipping (ARC)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.norm_clipping import norms_of, shortened
from phalanx.aggregation.pipeline import PreAggregation
from phalanx.checks import require_minority


@dataclass(frozen=True)
class ARC(ByzantineBound, PreAggregation):
    """Adaptive robust clipping: shortens the k longest messages to the norm of the next longest.

    `x_i <- x_i min(1, r / ||x_i||)`, r being the (k + 1)-th largest norm and `k = floor(2 (f / n)
    (n - f))`, so that nothing is clipped with f = 0.

    Guarantee: unlike clipping to a fixed radius, it keeps a rule robust, and it bounds what comes
    out by the norm of an honest message.
    Cost: the Gram matrix.
    Source: Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "Adaptive Gradient Clipping for
    Robust Federated Learning", ICLR 2025, section 4.

    >>> import torch
    >>> from phalanx.aggregation import ARC, Mean
    >>> (ARC(num_byzantine=1) >> Mean())(torch.tensor([[3.0], [2.0], [4.0], [900.0]]))
    tensor([3.2500])
    """

    from_origin: ClassVar[bool] = True

    def counts(self, num_messages: int, num_byzantine: int) -> tuple[int, int]:
        """As many messages as before.

        Raises:
            ValueError: if `num_byzantine` is not below half of the messages.
        """
        require_minority(num_byzantine, num_messages)
        return num_messages, num_byzantine

    def mix(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator
    ) -> Float[Tensor, "mixtures messages"]:
        """A diagonal matrix of factors of at most 1."""
        norms = norms_of(geometry)
        num_clipped = 2 * num_byzantine * (len(norms) - num_byzantine) // len(norms)
        return shortened(norms, float(norms.sort(descending=True).values[num_clipped]))
