"""Sampling of atoms with the probabilities of least variance for a budget."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.compression.draws import uniforms

Sampling = Literal["systematic", "bernoulli"]


def threshold(sizes: Float[Tensor, " atoms"], budget: float) -> Float[Tensor, ""]:
    """The `tau` for which the probabilities `min(1, size / tau)` add up to the budget.

    These have the least variance, `sum of size^2 (1 / p - 1)`, of all with that sum. 0 if the
    budget is enough for every atom that is not zero. Found without sorting: atoms above the level
    are certain, and the level for the others follows; no atom ever turns back, so a few passes do.
    Source: Wang, Sievert, Charles, Liu, Wright, Papailiopoulos, "ATOMO: Communication-efficient
    Learning via Atomic Sparsification", NeurIPS 2018, algorithm 1.

    >>> threshold(torch.tensor([4.0, 1.0, 1.0]), 2.0)
    tensor(2.)
    """
    largest = sizes.max()
    if int((sizes > 0).sum()) <= budget:
        return torch.zeros_like(largest)
    wide = sizes.double() / largest
    certain, level = 0, wide.sum() / budget
    while (count := int((above := wide > level).sum())) > certain:
        certain = count
        level = torch.where(above, 0.0, wide).sum() / (budget - count)
    return (level * largest).clamp(max=torch.finfo(sizes.dtype).max).to(sizes.dtype)


def probabilities(
    sizes: Float[Tensor, " atoms"], tau: Float[Tensor, ""]
) -> Float[Tensor, " atoms"]:
    """`min(1, size / tau)`; with `tau` 0, one for every atom that is not zero."""
    if not tau:
        return (sizes > 0).to(sizes.dtype)
    return (sizes / tau).clamp_(max=1)


def sample(
    chances: Float[Tensor, " atoms"], method: Sampling, generator: torch.Generator | None
) -> Bool[Tensor, " atoms"]:
    """Which atoms are kept, each with its probability.

    Bernoulli: independently of each other. Systematic: in random order along a comb with one
    random offset, so that as many are kept as the probabilities add up to, but for rounding.
    """
    if method == "bernoulli":
        return uniforms(chances, generator) < chances
    where = generator.device if generator is not None else chances.device
    order = torch.randperm(len(chances), generator=generator, device=where).to(chances.device)
    offset = torch.rand((), generator=generator, dtype=torch.float64, device=where)
    ends = (chances[order].double().cumsum(0) - offset.to(chances.device)).floor_()
    hit = ends.diff(prepend=ends.new_tensor([-1.0])) > 0
    return torch.empty_like(hit).index_copy_(0, order, hit)
