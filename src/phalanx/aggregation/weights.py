"""Sample weights: how much each message counts."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SLACK = 1e-9  # of the whole: what rounding may make of weights that add up to exactly a share


def as_weights(weights: Any, num_workers: int) -> Float[Tensor, " workers"] | None:
    """The weights of the workers as float64 in main memory; None if none were given.

    Raises:
        ValueError: unless there is one finite weight per worker, none below 0, and one above.
    """
    if weights is None:
        return None
    try:
        found = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights must be numbers, got {weights!r}") from error
    if found.shape != (num_workers,):
        raise ValueError(
            f"weights must be one number for each of {num_workers} workers, "
            f"got shape {tuple(found.shape)}"
        )
    unfit = ~(torch.isfinite(found) & (found >= 0))
    if unfit.any():
        worker = int(unfit.int().argmax())
        raise ValueError(
            f"weights must be finite and at least 0, got {found[worker].item()} for worker {worker}"
        )
    if not found.any():
        raise ValueError(f"weights must not all be 0, got {found.tolist()}")
    return found


def present(
    weights: Float[Tensor, " workers"] | None, num_workers: int
) -> Bool[Tensor, " workers"]:
    """Who takes part: every worker but those of weight 0."""
    return torch.ones(num_workers, dtype=torch.bool) if weights is None else weights > 0


def normalized(weights: Float[Tensor, " rows"] | None) -> Float[Tensor, " rows"] | None:
    """Weights of 1 on average; None if all are alike, so that a rule takes its unweighted way."""
    if weights is None or not len(weights) or bool((weights == weights[0]).all()):
        return None
    shares = weights / weights.max()  # so that their sum does not overflow
    return shares * (len(shares) / shares.sum())


def weighted_median(
    values: Float[Tensor, "*batch rows"], weights: Float[Tensor, " rows"], *, beyond: bool = False
) -> Float[Tensor, "*batch"]:
    """The smallest value up to which half of the weight lies; more than half if `beyond`.

    >>> weighted_median(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 1.0, 1.0, 5.0]))
    tensor(4.)
    """
    ordered, order = values.sort(dim=-1, stable=True)
    cumulative = weights[order].cumsum(dim=-1)
    first = position(cumulative, weights.sum().item() / 2, beyond=beyond, dim=-1)
    return ordered.gather(-1, first).squeeze(-1)


def position(cumulative: Tensor, share: float, *, beyond: bool, dim: int) -> Tensor:
    """Where cumulative weights first reach a share, or go beyond it; keeps the dimension."""
    slack = _SLACK * share
    reached = cumulative > share + slack if beyond else cumulative >= share - slack
    return reached.to(torch.uint8).argmax(dim=dim, keepdim=True)
