"""TopAgg: votes of gradients by their largest values, and what a noisy majority of them says."""

from typing import Literal

import numpy as np
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
    """Every row reduced to its k values of largest magnitude, of Euclidean norm `sqrt(k)` at most.

    `"sign"`: +1 or -1, the sign of the value. `"stochastic"`: +1 with probability
    `1/2 + g / (2 b)`, cut off at 0 and 1, and -1 otherwise, `b = min(max |g|, cap)`: without a cap
    the mean is `g / b` there. `"values"`: the values, scaled to norm `sqrt(k)`. All else is zero.
    Of equal values the first are kept. What is exactly zero casts no vote, and neither does a row
    that is not finite.

    Args:
        gradients: one row for each voter; float32 or float64.
        k: values kept of each row, from 1 to dim.
        quantise: how.
        cap: on the magnitude at which stochastic signs are certain (`b_max`), above 0.
        generator: of stochastic signs, on the device of the rows; None draws from torch's own.

    Raises:
        ValueError: if an argument is out of its range.

    Cost: O(n d) time and memory, but for rows with ties, which are sorted.
    Source: Wang, Wu, Long, Rimanic, Zhang and Li, "DataLens: Scalable Privacy Preserving Training
    via Gradient Compression and Aggregation", CCS 2021 (Algorithm 2).

    >>> import torch
    >>> from phalanx.privacy import top_k_votes
    >>> top_k_votes(torch.tensor([[3.0, -1.0, -4.0], [0.0, 0.0, 0.0]]), k=2)
    tensor([[ 1.,  0., -1.],
            [ 0.,  0.,  0.]])
    """
    require_finite_above(0, cap=cap)
    require_one_of(("sign", "stochastic", "values"), quantise=quantise)
    if not 1 <= k <= gradients.shape[1]:
        raise ValueError(f"k must be from 1 to the {gradients.shape[1]} coordinates, got {k}")
    finite = torch.isfinite(gradients).all(dim=1, keepdim=True)
    if not bool(finite.all()):
        gradients = torch.where(finite, gradients, 0.0)
    sizes = gradients.abs()
    chosen = sizes >= _largest(sizes, k)
    tied = (chosen.sum(dim=1) > k).nonzero().flatten()
    if len(tied):
        order = sizes[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
        chosen[tied] = torch.zeros_like(chosen[tied]).scatter_(1, order, True)
    if quantise == "values":
        return _of_norm(torch.where(chosen, gradients, 0.0), k**0.5)
    votes = gradients.sign()
    if quantise == "stochastic":
        largest = sizes.amax(dim=1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
        bound = largest if cap is None else largest.clamp(max=cap)
        draws = torch.empty_like(gradients).uniform_(-1.0, 1.0, generator=generator)
        votes = torch.where(draws < gradients / bound, 1.0, -1.0).to(votes) * votes.abs()
    return torch.where(chosen, votes, 0.0)


def noisy_majority(
    noisy: Float[Tensor, "..."], num_voters: int, threshold: float
) -> Float[Tensor, "..."]:
    """Direction that a noisy majority of the voters agrees on, zero where there is none.

    +1 where the noisy sum of votes is above `threshold * num_voters`, -1 where it is below minus
    that, and 0 between: what comes after the noise costs no privacy.

    Args:
        noisy: sums of the rows of `top_k_votes` over the voters, with noise.
        num_voters: T.
        threshold: beta, the share of the voters that a direction needs; at least 0.

    Raises:
        ValueError: if a number is out of its range.

    >>> import torch
    >>> from phalanx.privacy import noisy_majority
    >>> noisy_majority(torch.tensor([9.0, -6.0, 1.0]), 10, threshold=0.5)
    tensor([ 1., -1.,  0.])
    """
    require_at_least(1, num_voters=num_voters)
    require_finite_at_least(0, threshold=threshold)
    needed = threshold * num_voters
    return (noisy > needed).to(noisy) - (noisy < -needed).to(noisy)


def top_agg_sensitivity(k: int, *, replace: bool = True) -> float:
    """L2 sensitivity of a sum of `top_k_votes` rows to one row.

    Args:
        k: values that vote.
        replace: whether neighbours differ in one row's content, `2 sqrt(k)` (all its signs turn),
            as where a record of a fixed partition changes; else a row is there or not, `sqrt(k)`.

    >>> from phalanx.privacy import top_agg_sensitivity
    >>> top_agg_sensitivity(100), top_agg_sensitivity(100, replace=False)
    (20.0, 10.0)
    """
    require_at_least(1, k=k)
    return float((2 if replace else 1) * k**0.5)


def _largest(sizes: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n 1"]:
    """The k-th largest number of each row."""
    place = sizes.shape[1] - k
    if sizes.device.type == "cpu":  # NumPy partitions rows five times as fast as torch
        found = np.partition(sizes.detach().numpy(), place, axis=1)[:, place : place + 1]
        return torch.from_numpy(np.ascontiguousarray(found))
    return sizes.kthvalue(place + 1, dim=1, keepdim=True).values


def _of_norm(rows: Float[Tensor, "n d"], norm: float) -> Float[Tensor, "n d"]:
    """Rows scaled to a norm, however small or large they are; zeros stay zeros."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / largest.where(largest > 0, 1.0)
    length = scaled.norm(dim=1, keepdim=True)
    return torch.where(length > 0, scaled * (norm / length), 0.0)
