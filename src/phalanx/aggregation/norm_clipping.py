"""Norm clipping."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.pipeline import PreAggregation
from phalanx.aggregation.weights import weighted_median
from phalanx.checks import require_above


@dataclass(frozen=True)
class NormClipping(PreAggregation):
    """Norm clipping: shortens messages that are longer than a radius r to that length.

    `x_i <- x_i min(1, r / ||x_i||)`.

    Guarantee: nobody sends anything longer than the radius, which by itself makes any rule bounded,
    the mean included.
    Cost: the Gram matrix.
    Source: Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", arXiv
    1911.07963, 2019, section 4 (fixed); the median as radius is common practice.

    >>> import torch
    >>> from phalanx.aggregation import Mean, NormClipping
    >>> (NormClipping() >> Mean())(torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 900.0]]))
    tensor([1., 2.])
    """

    from_origin: ClassVar[bool] = True

    radius: float | None = None
    """Euclidean norm at most; None: the median norm of the messages."""

    def __post_init__(self) -> None:
        require_above(0, radius=self.radius)

    def mix(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator
    ) -> Float[Tensor, "mixtures messages"]:
        """A diagonal matrix of factors of at most 1."""
        norms = norms_of(geometry)
        typical = weighted_median(norms, geometry.sample_weights).item()
        return shortened(norms, typical if self.radius is None else self.radius)


def norms_of(geometry: Geometry) -> Float[Tensor, " messages"]:
    """Distances of the messages to the origin, which is the first point of the geometry."""
    origin = geometry.num_messages
    return geometry.squared_distances()[:origin, origin].sqrt() * geometry.unit


def shortened(
    norms: Float[Tensor, " messages"], radius: float
) -> Float[Tensor, "messages messages"]:
    """Weights that shorten messages of these norms to the radius."""
    return torch.where(norms <= radius, 1.0, radius / norms).diag()
