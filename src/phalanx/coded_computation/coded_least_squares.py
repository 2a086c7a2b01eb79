"""Least squares whose gradient is two coded products."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from phalanx.coded_computation.coded_matmul import CodedMatmul, CodedMatrix


@dataclass(frozen=True, eq=False)
class CodedLeastSquares:
    """`|A x - b|^2 / (2 rows)`, with A and its transpose coded, each for its own product.

    A worker holds one shard of each, so it stores twice what it stores for products with A alone.

    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on linear regression.

    >>> import torch
    >>> from phalanx.coded_computation import CodedLeastSquares, CodedMatmul
    >>> A, b = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([2.0, 1.0])
    >>> problem = CodedLeastSquares.encode(CodedMatmul(num_workers=3, num_blocks=2), A, b)
    >>> def times(matrix, x):
    ...     return matrix.decode(torch.stack([shard @ x for shard in matrix.shards])).value
    >>> problem.gradient(torch.zeros(2), times)
    tensor([-2.0000, -0.5000])
    """

    matrix: CodedMatrix
    """A, coded."""

    transpose: CodedMatrix
    """The transpose of A, coded."""

    targets: Float[Tensor, " rows"]
    """b."""

    @classmethod
    def encode(
        cls,
        code: CodedMatmul,
        matrix: Float[Tensor, "rows columns"],
        targets: Float[Tensor, " targets"],
    ) -> "CodedLeastSquares":
        """Codes A, dense or CSR, and its transpose.

        Raises:
            ValueError: if there is not one target for each row, or the matrix cannot be coded.
        """
        if targets.shape != matrix.shape[:1]:
            raise ValueError(
                f"targets must have one entry for each of {len(matrix)} rows, got shape "
                f"{tuple(targets.shape)}"
            )
        return cls(code.encode(matrix), code.encode(matrix.t()), targets)

    def gradient(
        self, x: Float[Tensor, " columns"], times: Callable[[CodedMatrix, Tensor], Tensor]
    ) -> Float[Tensor, " columns"]:
        """`A^T (A x - b) / rows`.

        Args:
            x: where.
            times: the product of a coded matrix with a vector, on whatever workers there are, such
                as `lambda matrix, x: matrix.multiply(x, executor).value`.
        """
        residual = times(self.matrix, x) - self.targets
        return times(self.transpose, residual) / len(self.targets)
