"""TopAgg: gradients reduced to signs of their largest values, and a noisy vote on them."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import (
    require_at_least,
    require_finite_above,
    require_finite_at_least,
    require_one_of,
)

Quantise = Literal["sign", "stochastic", "values"]


def top_k_votes(
    gradients: Float[Tensor, "voters dim"],
    k: int,
    quantise: Quantise = "sign",
    cap: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "voters dim"]:
    """Every row reduced to its k values of largest magnitude, of Euclidean norm `sqrt(k)`.

    `"sign"`: +1 or -1, the sign of the value. `"stochastic"`: +1 with probability
    `1/2 + g / (2 b)`, cut off at 0 and 1, and -1 otherwise, `b = min(max |g|, cap)`: without a cap
    the mean is `g / b` there. `"values"`: the values, scaled to that norm. All else is zero, and so
    is a row of zeros; signs of zeros among the k largest are +1. Of equal values the first are
    kept.

    Args:
        gradients: one row for each voter, finite.
        k: values kept of each row; all if there are no more.
        quantise: how.
        cap: on the magnitude at which stochastic signs are certain (`b_max`).
        generator: of stochastic signs, on the CPU; None draws from torch's global one.

    Cost: a sort of every row.
    Source: Wang, Wu, Long, Rimanic, Zhang and Li, "DataLens: Scalable Privacy Preserving Training
    via Gradient Compression and Aggregation", CCS 2021 (Algorithm 2).

    >>> import torch
    >>> from phalanx.privacy import top_k_votes
    >>> top_k_votes(torch.tensor([[0.1, -5.0, 2.0, 0.3]]), k=2)
    tensor([[ 0., -1.,  1.,  0.]])
    """
    require_at_least(1, k=k)
    require_finite_above(0, cap=cap)
    require_one_of(("sign", "stochastic", "values"), quantise=quantise)
    k = min(k, gradients.shape[1])
    magnitudes = gradients.abs()
    largest = magnitudes.amax(dim=1, keepdim=True)
    # The k-th largest, and of those that tie with it the first.
    border = magnitudes.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above, ties = magnitudes > border, magnitudes == border
    room = k - above.sum(dim=1, keepdim=True)
    kept = (above | (ties & (ties.cumsum(dim=1) <= room))) & (largest > 0)
    if quantise == "values":
        scaled = (gradients / largest.where(largest > 0, 1.0)).where(kept, 0.0)
        length = scaled.norm(dim=1, keepdim=True)
        return torch.where(length > 0, scaled * (k**0.5 / length), 0.0)
    if quantise == "sign":
        votes = torch.where(gradients >= 0, 1.0, -1.0)
    else:
        bound = largest if cap is None else largest.clamp(max=cap)
        chances = (0.5 + gradients / (2 * bound)).clamp(0.0, 1.0)
        coins = torch.rand(gradients.shape, generator=generator).to(gradients.device)
        votes = torch.where(coins < chances, 1.0, -1.0)
    return votes.to(gradients.dtype).where(kept, 0.0)


@dataclass(frozen=True)
class TopAgg:
    """TopAgg: a noisy vote of teachers on the signs of the largest values of their gradients.

    `o = +1` where `sum_t v_t + N(0, std^2) > threshold T`, -1 where it is below `-threshold T`, and
    0 elsewhere, for the votes `v_t` of T teachers (`top_k_votes`).

    One record belongs to one teacher, whose votes it may change altogether: the sum of votes has
    sensitivity `2 sqrt(k)` under replacing it, attained where all signs flip. Thresholds are
    post-processing. So an `Accountant(relation="replace")` is told `noise_multiplier` a release.

    Source: Wang, Wu, Long, Rimanic, Zhang and Li, "DataLens: Scalable Privacy Preserving Training
    via Gradient Compression and Aggregation", CCS 2021 (Algorithms 1 and 2).

    >>> import torch
    >>> from phalanx.privacy import TopAgg
    >>> gradients = torch.tensor([[3.0, 0.1], [2.0, 0.2], [-0.1, 4.0]])
    >>> TopAgg(k=1, std=0.0, threshold=0.5)(gradients, noise=torch.zeros(2))
    tensor([1., 0.])
    """

    k: int = 200
    """Values that a teacher votes on."""

    std: float = 5000.0
    """Standard deviation of the noise on each sum of votes."""

    threshold: float = 0.7
    """Share of the teachers that must agree (beta in the paper)."""

    quantise: Quantise = "stochastic"
    """How values become votes, see `top_k_votes`."""

    cap: float | None = None
    """Magnitude at which stochastic signs are certain (b_max in the paper)."""

    def __post_init__(self) -> None:
        require_at_least(1, k=self.k)
        require_finite_at_least(0, std=self.std, threshold=self.threshold)
        require_finite_above(0, cap=self.cap)
        require_one_of(("sign", "stochastic", "values"), quantise=self.quantise)

    @property
    def sensitivity(self) -> float:
        """`2 sqrt(k)`, of the sum of votes when one teacher's record is replaced."""
        return float(2 * self.k**0.5)

    @property
    def noise_multiplier(self) -> float:
        """`std / sensitivity`."""
        return self.std / self.sensitivity

    def __call__(
        self,
        gradients: Float[Tensor, "teachers dim"],
        noise: Float[Tensor, " dim"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The outcome of a vote: +1, -1 or 0 for every value.

        Args:
            gradients: one row for each teacher.
            noise: standard normal numbers; see `phalanx.privacy.noise.standard_normal`.
            generator: of stochastic signs.
        """
        votes = top_k_votes(gradients, self.k, self.quantise, self.cap, generator).sum(dim=0)
        noisy, needed = votes + self.std * noise.to(votes), self.threshold * len(gradients)
        return (noisy > needed).to(votes) - (noisy < -needed).to(votes)
