"""Arithmetic modulo 2^64: int64 tensors that wrap around, which torch does exactly."""

import torch
from jaxtyping import Int64
from torch import Tensor

_WIDTH = 2048  # columns at a time: both factors stay in the cache


def products(
    left: Int64[Tensor, "left dim"], right: Int64[Tensor, "right dim"]
) -> Int64[Tensor, "left right"]:
    """Inner products of all rows on the left with all rows on the right, modulo 2^64."""
    total = left.new_zeros(len(left), len(right))
    for start in range(0, left.shape[1], _WIDTH):
        columns = slice(start, start + _WIDTH)
        total += left[:, columns] @ right[:, columns].T
    return total


def pairs(matrix: Int64[Tensor, "rows rows"]) -> Int64[Tensor, " pairs"]:
    """Squared distances from inner products, or shares of one from shares of the other.

    They are linear in the products: `q_ii + q_jj - q_ij - q_ji` for every pair `i < j`.
    """
    first, second = torch.triu_indices(len(matrix), len(matrix), offset=1)
    norms = matrix.diagonal()
    return norms[first] + norms[second] - matrix[first, second] - matrix[second, first]


def square(pair_values: Tensor, num_rows: int) -> Tensor:
    """The symmetric matrix with these values above its diagonal, which is zero."""
    first, second = torch.triu_indices(num_rows, num_rows, offset=1)
    matrix = pair_values.new_zeros(num_rows, num_rows)
    matrix[first, second] = matrix[second, first] = pair_values
    return matrix
