"""Eigenvectors that are there even where LAPACK does not converge."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # it is documented


def eigenvectors(gram: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Orthonormal eigenvectors of a symmetric matrix as columns, their eigenvalues growing.

    Where the decomposition does not converge it is tried once more in float64; if that fails too,
    the unit vectors are returned. They are no eigenvectors, but orthonormal: what is written along
    them adds up all the same, with more variance.

    >>> eigenvectors(torch.diag(torch.tensor([1.0, 2.0]))).abs()
    tensor([[1., 0.],
            [0., 1.]])
    """
    for attempt in (gram, gram.double()):
        try:
            found: Tensor = torch.linalg.eigh(attempt).eigenvectors
        except LinAlgError:
            continue
        if bool(found.isfinite().all()):
            return found.to(gram.dtype)
    return torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
