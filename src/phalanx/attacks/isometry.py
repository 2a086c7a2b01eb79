"""Isometric embedding of messages in as many coordinates as there are messages."""

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = 1 << 16  # columns that are held in float64 at a time


def coordinates(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows rows"]:
    """Points in as many dimensions as there are rows, as far from each other as the rows are.

    A rule that weighs messages by their distances alone gives the same weights to these points, so
    whoever wants to try it many times tries it here. The points are the rows less their mean, in
    another basis: affine combinations of rows are the same combinations of points.

    Args:
        rows: finite messages of any floating dtype.

    Returns:
        float64, on the device of the rows.

    Cost: one pass in float64, and an eigendecomposition of a `rows x rows` matrix.

    >>> points = coordinates(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 4.0, 5.0]]))
    >>> (points[0] - points[1]).norm()
    tensor(5., dtype=torch.float64)
    """
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(_BLOCK, dim=1):
        offsets = block.double()
        offsets -= offsets.mean(dim=0)
        gram.addmm_(offsets, offsets.T)
    values, vectors = torch.linalg.eigh(gram)
    points: Tensor = vectors * values.clamp(min=0).sqrt()
    return points
