"""Adaptive norm clipping."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.base import State
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.norm_clipping import norms_of, shortened
from phalanx.aggregation.pipeline import PreAggregation
from phalanx.aggregation.weights import weighted_median
from phalanx.checks import require_finite_above, require_one_of, require_strictly_between


@dataclass(frozen=True)
class AdaptiveNormClipping(PreAggregation):
    """Adaptive norm clipping: shortens messages to a radius that follows their norms.

    `x_i <- x_i min(1, C / ||x_i||)`. With `"quantile"` the radius follows a quantile from round to
    round, `C <- C exp(-rate (b - quantile))`, b being the share of messages of norm at most C; it
    begins as that quantile of the first round. With `"mean"` it is the mean of the norms of the
    round, which a single long message raises as it likes: for comparison only.

    Remembers: the radius, in a `Pipeline`.

    Guarantee: with a quantile, f of n Byzantine messages move the radius by a factor of at most
    `exp(rate f / n)` a round from where the honest ones would have it.
    Cost: the Gram matrix.
    Source: Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive
    Clipping", NeurIPS 2021, section 3 (geometric update; without its noise, and begun otherwise).

    >>> import torch
    >>> from phalanx.aggregation import AdaptiveNormClipping, Mean
    >>> rule = AdaptiveNormClipping() >> Mean()
    >>> rule(torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 900.0]]))
    tensor([1., 2.])
    """

    from_origin: ClassVar[bool] = True

    statistic: Literal["quantile", "mean"] = "quantile"
    """What the radius follows."""

    quantile: float = 0.5
    """Share of the messages that are to be left as they are (gamma in the paper)."""

    rate: float = 0.2
    """Learning rate of the logarithm of the radius (eta_C in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(("quantile", "mean"), statistic=self.statistic)
        require_strictly_between(0, 1, quantile=self.quantile)
        require_finite_above(0, rate=self.rate)

    def init(self) -> State:
        """No radius yet."""
        return (torch.tensor(torch.nan, dtype=torch.float64),)

    def mix(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator
    ) -> Float[Tensor, "mixtures messages"]:
        """A diagonal matrix of factors of at most 1, as in the first round."""
        return self.update(geometry, num_byzantine, random, self.init())[0]

    def update(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator, state: State
    ) -> tuple[Float[Tensor, "mixtures messages"], State]:
        """The factors of this round, and the radius of the next."""
        norms, weights = norms_of(geometry), geometry.sample_weights
        shares = weights / weights.sum()
        if self.statistic == "mean":
            return shortened(norms, float(shares @ norms)), state
        radius = state[0]
        if radius.isnan():
            radius = _quantile(norms, shares, self.quantile)
        within = shares[norms <= radius].sum()
        following = radius * torch.exp(-self.rate * (within - self.quantile))
        return shortened(norms, radius.item()), (following,)


def _quantile(norms: Tensor, shares: Tensor, level: float) -> Tensor:
    """The smallest norm up to which this share of the weight lies; the median as the rules have it.

    A radius of 0 would never grow again: then the smallest norm that is above 0, or 1.
    """
    if level == 0.5:
        found = weighted_median(norms, shares)
    else:
        ordered, order = norms.sort(stable=True)
        reached = shares[order].cumsum(dim=0) >= level - 1e-12
        found = ordered[reached.to(torch.uint8).argmax()]
    if found > 0:
        return found
    positive = norms[norms > 0]
    return positive.min() if len(positive) else torch.ones_like(found)
