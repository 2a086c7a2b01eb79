"""Coded matrix products: any k of n workers are enough, whichever lag or die."""

from concurrent.futures import FIRST_COMPLETED, Executor, wait
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.coded_computation.matrix_shards import encode_dense, encode_sparse
from phalanx.coded_computation.parity import Parity, systematic_generator, worst_condition
from phalanx.coding.groups import name
from phalanx.columns import WIDE_BLOCK, column_blocks
from phalanx.errors import DecodeError

_PATTERNS = 1024  # patterns of arrival whose solution is kept, over all codes


class Product(NamedTuple):
    """What the decoder of a coded product answers.

    Attributes:
        value: `(rows,)` or `(rows, columns)`, the product.
        suspects: `(workers,)` bool, the workers whose results arrived and cannot be: they are not
            finite, or of another shape or dtype.
        condition: condition number of the equations that were solved; 1 if none had to be.
    """

    value: Float[Tensor, "rows ..."]
    suspects: Bool[Tensor, " workers"]
    condition: float


@dataclass(frozen=True)
class CodedMatmul:
    """Coded products: a matrix is cut into k blocks of rows, and any k of n workers give A x.

    The first k workers hold the blocks themselves, the others weighted sums of all blocks. What the
    first k workers send is copied, not computed; only blocks that are missing are solved for, with
    weights that are found once for each pattern of arrival.

    Guarantee: the product, up to rounding times the condition number that is reported, as long as
    any `num_blocks` finite results arrive; else a `DecodeError`. Erasures are survived; a finite
    result that is wrong is not noticed.

    Cost: each worker holds and multiplies one k-th of the rows. Encoding takes 2 (n - k) operations
    for each number of the matrix, once. Decoding takes 2 k operations for each number that is
    missing. A matrix whose rows are no multiple of k is copied once, to pad it.

    A sparse matrix (CSR) stays sparse with the first k workers. A weighted sum of k blocks has up
    to k times the entries of one block: the other workers hold it sparse if that takes less memory
    than dense, else dense, and are slower with it than the first k.

    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded computation.

    >>> import torch
    >>> from phalanx.coded_computation import CodedMatmul
    >>> coded = CodedMatmul(num_workers=3, num_blocks=2).encode(torch.eye(4))
    >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> results = torch.stack([shard @ x for shard in coded.shards])
    >>> coded.decode(results, torch.tensor([False, True, True])).value.round()
    tensor([1., 2., 3., 4.])
    """

    num_workers: int = 10
    """Workers (n in the paper)."""

    num_blocks: int = 7
    """Blocks of rows, and results that are enough (k in the paper); see `optimal_num_blocks`."""

    parity: Parity = "gaussian"
    """Weights of the sums: 'gaussian', random with orthonormal rows and the best conditioned of a
    few draws; or 'chebyshev', fixed, and hopeless beyond about 20 workers."""

    seed: int = 0
    """Which random weights."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_blocks <= self.num_workers:
            raise ValueError(
                f"num_blocks must be from 1 to num_workers = {self.num_workers}, got "
                f"{self.num_blocks}"
            )
        if self.parity not in get_args(Parity):
            raise ValueError(f"parity must be 'gaussian' or 'chebyshev', got {self.parity!r}")

    @cached_property
    def weights(self) -> Float[Tensor, "workers blocks"]:
        """The generator, float64: worker i holds the sum of all blocks times `weights[i]`."""
        return systematic_generator(self.parity, self.num_workers, self.num_blocks, self.seed)

    def worst_condition(self, num_sets: int = 1000) -> float:
        """The largest condition number that decoding from `num_blocks` results can meet.

        Args:
            num_sets: how many sets of workers are drawn; exact if there are no more.
        """
        return worst_condition(self.weights, num_sets, self.seed)

    def can_decode(self, arrived: Bool[Tensor, " workers"]) -> bool:
        """Whether the results of these workers are enough."""
        return int(arrived.sum()) >= self.num_blocks

    def encode(self, matrix: Float[Tensor, "rows columns"]) -> "CodedMatrix":
        """The shards of a matrix, one for each worker.

        Args:
            matrix: dense or CSR, of floating point. The shards of the first k workers are views of
                a dense one, if its rows are a multiple of k.

        Raises:
            ValueError: if it is no matrix of floating point, or is empty.
        """
        if matrix.ndim != 2 or not matrix.is_floating_point() or 0 in matrix.shape:
            raise ValueError(
                "matrix must be two-dimensional, of floating point and not empty, got shape "
                f"{tuple(matrix.shape)} of {matrix.dtype}"
            )
        if matrix.layout == torch.strided:
            shards = encode_dense(self.weights, matrix)
        else:
            shards = encode_sparse(self.weights, matrix)
        return CodedMatrix(self, shards, matrix.shape[0])

    def decode(
        self,
        results: Float[Tensor, "workers block ..."],
        num_rows: int,
        arrived: Bool[Tensor, " workers"] | None = None,
    ) -> Product:
        """The product, from the results of any `num_blocks` workers; all that arrived are used.

        Args:
            results: one shard's product for each worker; rows that did not arrive hold anything.
            num_rows: rows of the matrix, without padding.
            arrived: whose results arrived; all by default.

        Raises:
            DecodeError: if fewer than `num_blocks` results are there and finite.
            ValueError: if there is not one result, or flag, for each worker.
        """
        if arrived is None:
            arrived = torch.ones(self.num_workers, dtype=torch.bool)
        if len(results) != self.num_workers or arrived.shape != (self.num_workers,):
            raise ValueError(
                f"results and arrived must have one entry for each of {self.num_workers} workers, "
                f"got {len(results)} and {len(arrived)}"
            )
        flat = results.flatten(start_dim=1)
        usable = arrived.cpu() & flat.isfinite().all(dim=1).cpu()
        if not self.can_decode(usable):
            raise self._error(usable)
        solution = _solution(self, tuple(usable.tolist()))
        value = flat[: self.num_blocks].clone()
        for columns in column_blocks(value.shape[1], WIDE_BLOCK) if solution.missing else ():
            heard = flat[solution.used, columns].double()
            value[solution.missing, columns] = (solution.weights.to(heard) @ heard).to(value.dtype)
        whole = value.reshape(-1, *results.shape[2:])[:num_rows]
        return Product(whole, (arrived.cpu() & ~usable).to(results.device), solution.condition)

    def _error(self, usable: Tensor) -> DecodeError:
        missing = (~usable).nonzero().flatten().tolist()
        return DecodeError(
            f"a product of {self.num_blocks} blocks needs as many results, got "
            f"{int(usable.sum())} that are finite; missing: {name(missing)}",
            workers=missing,
            bound=self.num_workers - self.num_blocks,
        )


@dataclass(frozen=True, eq=False)
class CodedMatrix:
    """A matrix as the workers hold it; made by `CodedMatmul.encode`."""

    code: CodedMatmul
    """How it is coded."""

    shards: tuple[Tensor, ...]
    """What each worker holds: `(block, columns)`, dense or CSR."""

    num_rows: int
    """Rows of the matrix, without padding."""

    def decode(
        self,
        results: Float[Tensor, "workers block ..."],
        arrived: Bool[Tensor, " workers"] | None = None,
    ) -> Product:
        """The product from the workers' results; see `CodedMatmul.decode`."""
        return self.code.decode(results, self.num_rows, arrived)

    def multiply(self, x: Float[Tensor, "inner ..."], executor: Executor) -> Product:
        """The product with a vector or a matrix, from the results that come first.

        What has not begun when enough have come is cancelled. A task that fails is an erasure.

        Args:
            x: dense, of the matrix's dtype.
            executor: of `concurrent.futures`; it gets one task for each worker.

        Raises:
            DecodeError: if fewer than `num_blocks` results come; from the first task's failure, if
                one failed.
            ValueError: if `x` does not fit the matrix.
        """
        results = self.table(x)
        arrived = torch.zeros(self.code.num_workers, dtype=torch.bool)
        suspects = arrived.clone()
        pending = {executor.submit(_times, shard, x): i for i, shard in enumerate(self.shards)}
        failure: BaseException | None = None
        try:
            while pending and not self.code.can_decode(arrived):
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    worker = pending.pop(future)
                    if (error := future.exception()) is not None:
                        failure = failure or error
                    elif self.fits(future.result(), x):
                        results[worker], arrived[worker] = future.result(), True
                    else:
                        suspects[worker] = True
        finally:
            for future in pending:
                future.cancel()
        try:
            return self.decode(results, arrived)._replace(suspects=suspects)
        except DecodeError as error:
            raise error from failure

    def table(self, x: Float[Tensor, "inner ..."]) -> Float[Tensor, "workers block ..."]:
        """Where the results of all workers find their place; zeros.

        Raises:
            ValueError: if `x` does not fit the matrix.
        """
        block, inner = self.shards[0].shape
        dtype = self.shards[0].dtype
        if x.ndim not in (1, 2) or len(x) != inner or x.dtype != dtype:
            raise ValueError(
                f"x must be a vector or a matrix of {inner} rows of {dtype}, got shape "
                f"{tuple(x.shape)} of {x.dtype}"
            )
        return x.new_zeros(self.code.num_workers, block, *x.shape[1:])

    def fits(self, result: object, x: Float[Tensor, "inner ..."]) -> bool:
        """Whether this can be a worker's result: of the right shape and dtype, and finite."""
        shape = (self.shards[0].shape[0], *x.shape[1:])
        return (
            isinstance(result, Tensor)
            and (result.shape, result.dtype) == (shape, x.dtype)
            and bool(result.isfinite().all())
        )


class _Solution(NamedTuple):
    """The blocks that are missing, as weighted sums of results."""

    missing: list[int]
    used: list[int]
    weights: Tensor
    condition: float


@lru_cache(maxsize=_PATTERNS)
def _solution(code: CodedMatmul, usable: tuple[bool, ...]) -> _Solution:
    """How to decode what arrived; of more sums than are needed, the least squares are taken."""
    heard = [worker for worker, there in enumerate(usable) if there]
    missing = [block for block in range(code.num_blocks) if not usable[block]]
    if not missing:
        return _Solution([], [], torch.empty(0, 0), 1.0)
    there = [worker for worker in heard if worker < code.num_blocks]
    sums = code.weights[[worker for worker in heard if worker >= code.num_blocks]]
    inverse = torch.linalg.pinv(sums[:, missing])
    weights = torch.cat([-inverse @ sums[:, there], inverse], dim=1)
    return _Solution(missing, heard, weights, torch.linalg.cond(code.weights[heard]).item())


def _times(shard: Tensor, x: Tensor) -> Tensor:
    """A worker's task."""
    return shard @ x
