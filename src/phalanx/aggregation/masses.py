"""How much each message counts."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SLACK = 1e-9  # of the whole: what rounding may make of masses that add up to exactly a share


def as_masses(weights: Any, num_workers: int) -> Float[Tensor, " workers"] | None:
    """The weights of the workers as float64 in main memory; None if none were given.

    Raises:
        ValueError: unless there is one finite weight a worker, none below 0, and one above.
    """
    if weights is None:
        return None
    try:
        masses = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights must be numbers, got {weights!r}") from error
    if masses.shape != (num_workers,):
        raise ValueError(
            f"weights must be one number for each of {num_workers} workers, "
            f"got shape {tuple(masses.shape)}"
        )
    unfit = ~(torch.isfinite(masses) & (masses >= 0))
    if unfit.any():
        worker = int(unfit.int().argmax())
        raise ValueError(
            f"weights must be finite and at least 0, got {masses[worker].item()} "
            f"for worker {worker}"
        )
    if not masses.any():
        raise ValueError(f"weights must not all be 0, got {masses.tolist()}")
    return masses


def present(masses: Float[Tensor, " workers"] | None, num_workers: int) -> Bool[Tensor, " workers"]:
    """Who takes part: every worker but those of weight 0."""
    return torch.ones(num_workers, dtype=torch.bool) if masses is None else masses > 0


def normalized(masses: Float[Tensor, " rows"] | None) -> Float[Tensor, " rows"] | None:
    """Masses of 1 on average; None if all are alike, so that a rule takes its unweighted way."""
    if masses is None or not len(masses) or bool((masses == masses[0]).all()):
        return None
    shares = masses / masses.max()  # so that their sum does not overflow
    return shares * (len(shares) / shares.sum())


def middle(
    values: Float[Tensor, "*batch rows"], masses: Float[Tensor, " rows"], *, beyond: bool = False
) -> Float[Tensor, "*batch"]:
    """The smallest value up to which half of the mass lies; more than half if `beyond`.

    >>> middle(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 1.0, 1.0, 5.0]))
    tensor(4.)
    """
    ordered, order = values.sort(dim=-1, stable=True)
    cumulative = masses[order].cumsum(dim=-1)
    first = position(cumulative, masses.sum().item() / 2, beyond=beyond, dim=-1)
    return ordered.gather(-1, first).squeeze(-1)


def position(cumulative: Tensor, share: float, *, beyond: bool, dim: int) -> Tensor:
    """Where cumulative masses first reach a share, or go beyond it; keeps the dimension."""
    slack = _SLACK * share
    reached = cumulative > share + slack if beyond else cumulative >= share - slack
    return reached.to(torch.uint8).argmax(dim=dim, keepdim=True)
