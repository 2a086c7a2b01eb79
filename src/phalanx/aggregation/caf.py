"""Covariance-bound agnostic filter (CAF), a spectral filter."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from phalanx.aggregation.aggregate import left_out
from phalanx.aggregation.base import ByzantineBound
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry


@dataclass(frozen=True)
class CAF(ByzantineBound, GeometryRule):
    """Covariance-bound agnostic filter: down-weights along the widest direction, again and again.

    All messages begin with weight `c_i = 1`. While `sum_i c_i > n - 2f`: `m` is the weighted mean,
    `v` the first eigenvector of the weighted covariance, `t_i = <v, x_i - m>^2`, and `c_i` becomes
    `c_i (1 - t_i / max_j t_j)`. The answer is the mean of the round whose largest eigenvalue was
    smallest. Deterministic: the direction is exact, from the Gram matrix.

    Scores: the squared distance to the aggregate. Suspects: those without weight in the answer.
    Cost: two passes: n^2 d multiply-adds for the Gram matrix, n d for the weighted sum; at most n
    eigenvectors of n x n matrices.
    Source: Allouah, Guerraoui, Stephan, "Towards Trustworthy Federated Learning with Untrusted
    Participants", ICML 2025, section 4.

    >>> import torch
    >>> from phalanx.aggregation import CAF
    >>> CAF(num_byzantine=1)(torch.tensor([[1.0], [2.0], [3.0], [900.0]]))
    tensor([2.0007])
    """

    squares_scores: ClassVar[bool] = True

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """The weights of the round with the smallest spread."""
        gram, norms = geometry.reached_gram(), geometry.gram.diagonal()
        credit = geometry.reached().double()
        best, weights = math.inf, credit / credit.sum()
        while credit.sum() > max(0, len(credit) - 2 * num_byzantine):
            now = credit / credit.sum()
            pulls = gram @ now
            centred = gram - pulls[:, None] - pulls[None, :] + now @ pulls
            root = now.sqrt()
            values, vectors = torch.linalg.eigh(root[:, None] * centred * root)
            if values[-1] < best:
                best, weights = values[-1].item(), now
            offsets = (centred @ (root * vectors[:, -1])).abs().where(credit > 0, 0.0)
            if offsets.max() == 0:
                break
            # Divided before it is squared, which may overflow.
            credit = credit * (1 - (offsets / offsets.max()).square())
        pulls = gram @ weights
        scores = (norms - 2 * pulls + weights @ pulls).clamp(min=0)
        return Verdict(weights, scores, left_out(weights > 0, scores))
