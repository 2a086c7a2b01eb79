"""Blocks of rows of a matrix, and weighted sums of them."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from phalanx.floats import working


def encode_dense(
    weights: Float[Tensor, "workers blocks"], matrix: Float[Tensor, "rows columns"]
) -> tuple[Tensor, ...]:
    """The shards of a dense matrix: the blocks themselves, as views, and then their sums.

    Args:
        weights: `[I; M]`, float64.
        matrix: is padded with zeros where its rows are no multiple of the number of blocks.
    """
    num_blocks = weights.shape[1]
    block = -(-len(matrix) // num_blocks)
    if rest := block * num_blocks - len(matrix):
        matrix = pad(matrix, (0, 0, 0, rest))
    blocks = matrix.reshape(num_blocks, block, -1)
    dtype = working(matrix.dtype)
    parity = weights[num_blocks:].to(matrix.device, dtype)
    sums = (parity @ blocks.flatten(start_dim=1).to(dtype)).to(matrix.dtype)
    return (*blocks, *sums.reshape(-1, *blocks.shape[1:]))


def encode_sparse(
    weights: Float[Tensor, "workers blocks"], matrix: Float[Tensor, "rows columns"]
) -> tuple[Tensor, ...]:
    """The shards of a sparse matrix, each CSR or dense, whichever takes less memory.

    Args:
        weights: `[I; M]`, float64; sums are taken with it before they are rounded.
        matrix: of any sparse layout.
    """
    entries = matrix.to_sparse_coo().coalesce()
    rows, columns = entries.indices()
    block = -(-matrix.shape[0] // weights.shape[1])
    number, row = rows // block, rows % block
    shards = []
    for own in weights.to(matrix.device):
        factor = own[number]
        kept = factor.nonzero().flatten()
        values = factor[kept] * entries.values()[kept]
        places = torch.stack([row[kept], columns[kept]])
        shards.append(_sparse(places, values, (block, matrix.shape[1]), matrix.dtype))
    return tuple(shards)


def _sparse(places: Tensor, values: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Entries as a CSR matrix, those at one place added up; dense where that takes less memory."""
    entries = torch.sparse_coo_tensor(places, values, shape, check_invariants=True).coalesce()
    entries = entries.to(dtype)
    stored = entries._nnz() * (8 + dtype.itemsize) + 8 * (shape[0] + 1)
    if stored >= shape[0] * shape[1] * dtype.itemsize:
        return entries.to_dense()
    with warnings.catch_warnings():  # that CSR is in beta, once in each process
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return entries.to_sparse_csr()
