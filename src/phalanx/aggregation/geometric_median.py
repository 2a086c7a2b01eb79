"""Geometric median."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from phalanx.aggregation.aggregate import far_out
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.weights import weighted_median
from phalanx.checks import require_at_least, require_strictly_between


@dataclass(frozen=True)
class GeometricMedian(GeometryRule):
    """Geometric median: `argmin_y sum_i ||x_i - y||`, by smoothed Weiszfeld steps to convergence.

    A step is `y <- sum_i w_i x_i / sum_i w_i` with `w_i = 1 / max(||x_i - y||, nu r)`, r being the
    typical distance. All steps happen on
    the Gram matrix, so their number hardly matters; they start from the mean of the more than half
    of the messages that lie closest around one of them, which no minority can carry away.

    Guarantee: (f, kappa)-robust with kappa = 4 (1 + f / (n - 2f))^2 for fewer than half Byzantine.
    Scores: the distance of a message to the aggregate. Suspects, a heuristic: three times as far
    as the median message.
    Cost: two passes: n^2 d multiply-adds for the Gram matrix, n d for the weighted sum.
    Source: Weiszfeld, Tohoku Mathematical Journal 43, 1937; Pillutla, Kakade, Harchaoui, "Robust
    Aggregation for Federated Learning", IEEE Transactions on Signal Processing 70, 2022, section 3
    (smoothing). Unlike there, smoothing is relative, so that the rule follows a change of scale.

    >>> import torch
    >>> from phalanx.aggregation import GeometricMedian
    >>> GeometricMedian()(torch.tensor([[1.0, 5.0], [1.0, 5.0], [900.0, -900.0]]))
    tensor([1., 5.])
    """

    uses_sample_weights: ClassVar[bool] = True

    num_byzantine: int | None = None
    """Byzantine workers tolerated (f); None: as many as are fewer than half."""

    smoothing: float = 1e-6
    """Distances below this share of the typical one count as that share (nu)."""

    tolerance: float = 1e-8
    """Steps end when the point moves by less than this share of the typical distance."""

    max_iterations: int = 1000
    """Steps at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_strictly_between(0, 1, smoothing=self.smoothing, tolerance=self.tolerance)
        require_at_least(1, max_iterations=self.max_iterations)

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Weights by Weiszfeld steps."""
        squared = geometry.squared_distances()
        samples = geometry.sample_weights
        spreads = weighted_median(squared, samples, beyond=True)
        centre = spreads.argmin()
        typical = spreads[centre]
        # Not to the bit, or rounding decides who of several equally near ones it starts from.
        around = samples.where(squared[centre] <= typical * (1 + 1e-9), 0.0)
        weights = around / around.sum()
        if typical in (0, torch.inf):  # more than half coincide, which settles it, or overflow
            distances = squared[centre].sqrt()
            return Verdict(weights, distances, far_out(distances))
        gram = geometry.reached_gram()
        norms = geometry.gram.diagonal()
        for _ in range(self.max_iterations):
            pulls = gram @ weights
            near = (norms - 2 * pulls + weights @ pulls).clamp(min=self.smoothing**2 * typical)
            pull = samples * near.rsqrt()
            before, weights = weights, pull / pull.sum()
            step = weights - before
            if step @ gram @ step <= self.tolerance**2 * typical:
                break
        pulls = gram @ weights
        distances = (norms - 2 * pulls + weights @ pulls).clamp(min=0).sqrt()
        return Verdict(weights, distances, far_out(distances))
