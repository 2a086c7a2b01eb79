"""TopAgg: noisy majority votes of the signs of the largest coordinates."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_above, require_at_least, require_finite_at_least


def top_signs(
    rows: Float[Tensor, "n d"],
    k: int,
    *,
    cap: float = math.inf,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n d"]:
    """Signs of the k coordinates of each row that are largest in magnitude, zero elsewhere.

    With a generator signs are stochastic: `+1` with probability `clip(1/2 + g / 2b, 0, 1)`, where
    `b = min(max |g|, cap)`, else `-1`; without a cap the mean is `g / b` on the chosen coordinates.
    Of coordinates that tie the first are taken. What is exactly zero casts no vote, and neither
    does a row that is not finite, so that no row ever has a norm above `sqrt(k)`.

    Args:
        rows: `(n, d)`, gradients; float32 or float64.
        k: coordinates that vote, from 1 to d.
        cap: b_max, the magnitude from which on a sign is certain; above 0.
        generator: of the stochastic signs, on the device of the rows; plain signs if None.

    Returns:
        `(n, d)`, entries -1, 0 and +1 in the dtype of the rows, at most k of a row nonzero.

    Raises:
        ValueError: if k is not from 1 to d, or the cap not above 0.

    Cost: O(n d) time and memory, but for rows with ties, which are sorted.
    Source: Wang, Wu, Long, Rimanic, Zhang, Li, "DataLens: Scalable Privacy Preserving Training via
    Gradient Compression and Aggregation", CCS 2021, algorithm 2.

    >>> import torch
    >>> from phalanx.privacy import top_signs
    >>> top_signs(torch.tensor([[3.0, -1.0, -4.0], [0.0, 0.0, 0.0]]), k=2)
    tensor([[ 1.,  0., -1.],
            [ 0.,  0.,  0.]])
    """
    require_above(0, cap=cap)
    if not 1 <= k <= rows.shape[1]:
        raise ValueError(f"k must be from 1 to the {rows.shape[1]} coordinates, got {k}")
    finite = torch.isfinite(rows).all(dim=1, keepdim=True)
    if not bool(finite.all()):
        rows = torch.where(finite, rows, 0.0)
    sizes = rows.abs()
    chosen = sizes >= _largest(sizes, k)
    tied = (chosen.sum(dim=1) > k).nonzero().flatten()
    if len(tied):
        order = sizes[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
        chosen[tied] = torch.zeros_like(chosen[tied]).scatter_(1, order, True)
    signs = rows.sign()
    if generator is not None:
        bound = sizes.amax(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny, max=cap)
        draws = torch.empty_like(rows).uniform_(-1.0, 1.0, generator=generator)
        signs = torch.where(draws < rows / bound, 1.0, -1.0).to(rows.dtype) * signs.abs()
    return torch.where(chosen, signs, 0.0)


def _largest(sizes: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n 1"]:
    """The k-th largest number of each row."""
    place = sizes.shape[1] - k
    if sizes.device.type == "cpu":  # NumPy partitions rows five times as fast as torch
        found = np.partition(sizes.detach().numpy(), place, axis=1)[:, place : place + 1]
        return torch.from_numpy(np.ascontiguousarray(found))
    return sizes.kthvalue(place + 1, dim=1, keepdim=True).values


def noisy_vote(
    votes: Float[Tensor, "*shape"],
    num_voters: int,
    *,
    noise_std: float,
    threshold: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """Direction that a noisy majority of the voters agrees on, zero where there is none.

    `V + N(0, noise_std^2)` of every entry, then +1 where it is above `threshold * num_voters`, -1
    where it is below minus that, and 0 between: what comes after the noise costs no privacy.

    Args:
        votes: sums of the rows of `top_signs` over the voters; any shape.
        num_voters: T.
        noise_std: sigma, the standard deviation of the noise on a sum; 0 for none.
        threshold: beta, the share of the voters that a direction needs; at least 0.
        generator: of the noise; needed unless `noise_std` is 0.

    Returns:
        Entries -1, 0 and +1, of the shape and dtype of the votes.

    Raises:
        ValueError: if there is noise and no generator, or a number is out of its range.

    >>> import torch
    >>> from phalanx.privacy import noisy_vote
    >>> noisy_vote(torch.tensor([9.0, -6.0, 1.0]), 10, noise_std=0.0, threshold=0.5)
    tensor([ 1., -1.,  0.])
    """
    require_at_least(1, num_voters=num_voters)
    require_finite_at_least(0, noise_std=noise_std, threshold=threshold)
    if noise_std > 0:
        if generator is None:
            raise ValueError("generator must be given where noise_std is above 0")
        # In float64, where the grid of the numbers is far below anything that the threshold sees.
        noise = torch.empty(votes.shape, dtype=torch.float64, device=votes.device)
        noisy = votes.double() + noise.normal_(0.0, noise_std, generator=generator)
    else:
        noisy = votes.double()
    bar = threshold * num_voters
    return ((noisy > bar).double() - (noisy < -bar).double()).to(votes.dtype)


def top_agg_sensitivity(k: int, *, replace: bool = True) -> float:
    """L2 sensitivity of a sum of `top_signs` rows to one row.

    Args:
        k: coordinates that vote.
        replace: whether neighbours differ in one row's content, `2 sqrt(k)` (all its signs turn),
            as where a record of a fixed partition changes; else a row is there or not, `sqrt(k)`.

    >>> from phalanx.privacy import top_agg_sensitivity
    >>> top_agg_sensitivity(100), top_agg_sensitivity(100, replace=False)
    (20.0, 10.0)
    """
    require_at_least(1, k=k)
    return (2 if replace else 1) * math.sqrt(k)


def top_agg_rdp(alpha: float, k: int, noise_std: float, num_votes: int = 1) -> float:
    """Renyi divergence of order alpha that noisy votes of a fixed partition may spend.

    `(2 sqrt(k))^2 alpha / (2 sigma^2) = 2 k alpha / sigma^2` of every vote. The bound does not look
    at the votes: the sharper one of a noisy arg-max is no theorem about a vector of signs.

    Args:
        alpha: order, above 1.
        k: coordinates that vote.
        noise_std: sigma, the standard deviation of the noise on a sum of votes.
        num_votes: vectors that are voted on: B of them in a step over B images.

    >>> from phalanx.privacy import top_agg_rdp
    >>> round(top_agg_rdp(2.0, k=200, noise_std=5000.0, num_votes=30), 6)
    0.00096
    """
    require_above(1, alpha=alpha)
    require_above(0, noise_std=noise_std)
    require_at_least(0, num_votes=num_votes)
    return num_votes * alpha * top_agg_sensitivity(k) ** 2 / (2 * noise_std**2)
