"""Coded matrix products by workers: the product comes from those that answer first."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.coded_computation.coded_matmul import CodedMatrix, Product
from phalanx.stragglers import UntilDecodable
from phalanx.training import Collector, Engine, Reply, Site, Task, Waiting, WorkerFactory
from phalanx.training.engines.base import telling

_PIECE = 2**22  # numbers of a shard that are multiplied before a worker asks if it may stop
_NAP_S = 0.005  # a sleeping worker asks so often


class TimedProduct(NamedTuple):
    """A product, and how it came about.

    Attributes:
        product: the decoded product.
        arrived: `(workers,)` bool, whose result it was decoded from.
        duration_s: seconds from handing out the tasks to the decoded product; those of the virtual
            clock, if the engine has one.
    """

    product: Product
    arrived: Bool[Tensor, " workers"]
    duration_s: float


class MatmulSession:
    """Coded products on an engine, whose workers hold their shards; a context manager.

    The server sends shards once, and an operand each time; it takes results until they can be
    decoded, and drops the rest. A worker that is dropped stops between two pieces of its shard.
    One that fails or answers nonsense is an erasure; so is one that dies, and it is started anew.

    Trust: see the engine.

    Cost: memory for all shards, n / k times the matrices.
    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded computation.

    >>> import torch
    >>> from phalanx.coded_computation import CodedMatmul, MatmulSession
    >>> from phalanx.training import Local
    >>> coded = CodedMatmul(num_workers=3, num_blocks=2).encode(torch.eye(4))
    >>> with MatmulSession(Local(), coded) as session:
    ...     session.multiply(coded, torch.arange(4.0)).product.value
    tensor([0., 1., 2., 3.])

    Args:
        engine: where the workers are.
        matrices: at least one; all coded for as many workers.

    Raises:
        ValueError: if there is no matrix, or the numbers of workers differ.
    """

    def __init__(self, engine: Engine, *matrices: CodedMatrix) -> None:
        if len({matrix.code.num_workers for matrix in matrices}) != 1:
            raise ValueError(
                "matrices must be at least 1, coded for equally many workers, got "
                f"{[matrix.code.num_workers for matrix in matrices]}"
            )
        self._matrices, self._number = matrices, 0
        self._session = engine.start(_MatrixWorkers(matrices))

    def multiply(
        self,
        matrix: CodedMatrix,
        x: Float[Tensor, "inner ..."],
        delays_s: Float[Tensor, " workers"] | None = None,
    ) -> TimedProduct:
        """The product with a vector or a matrix, from the results that come first.

        Args:
            matrix: one of those that the session was started with.
            x: dense, of the matrix's dtype.
            delays_s: seconds that each worker sleeps first, in a simulation.

        Raises:
            DecodeError: if too few results come before the engine's deadline; a note tells of
                workers that raised an exception.
            WorkerError: if they all did.
            ValueError: if the session does not hold the matrix, or `x` does not fit it.
        """
        began, number = time.monotonic(), self._index(matrix)
        num_workers = matrix.code.num_workers
        delays = tuple([0.0] * num_workers if delays_s is None else delays_s.tolist())
        results = _Results(matrix, x)
        replies = self._session.call(
            _Multiply(self._number, number, x, delays),
            range(num_workers),
            Waiting(UntilDecodable(matrix.code.can_decode)),
            results,
        )
        self._number += 1
        for worker in replies.missing:
            results.arrived[worker] = False
        with telling(replies.failures):
            product = matrix.decode(results.table, results.arrived)
        product = product._replace(suspects=results.suspects)
        virtual = replies.virtual_s
        duration_s = time.monotonic() - began if virtual is None else virtual
        return TimedProduct(product, results.arrived, duration_s)

    def close(self) -> None:
        """Stops the workers."""
        self._session.close()

    def __enter__(self) -> "MatmulSession":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _index(self, matrix: CodedMatrix) -> int:
        for number, held in enumerate(self._matrices):
            if held is matrix:
                return number
        raise ValueError("matrix must be one that the session was started with")


class _Results(Collector):
    """The table of results; what does not fit makes its sender a suspect."""

    def __init__(self, matrix: CodedMatrix, x: Tensor) -> None:
        self._matrix, self._x = matrix, x
        self.table = matrix.table(x)
        self.arrived = torch.zeros(matrix.code.num_workers, dtype=torch.bool)
        self.suspects = self.arrived.clone()

    def take(self, worker: int, value: object) -> None:
        if isinstance(value, Tensor) and self._matrix.fits(value, self._x):
            self.table[worker], self.arrived[worker] = value, True
        else:
            self.suspects[worker] = True

    def usable(self, worker: int) -> bool:
        return bool(self.arrived[worker])


@dataclass(frozen=True)
class _MatrixWorkers(WorkerFactory):
    """Workers that hold a shard of each matrix."""

    matrices: tuple[CodedMatrix, ...]

    @property
    def num_workers(self) -> int:
        return self.matrices[0].code.num_workers

    @property
    def held_bytes(self) -> int:
        return 2 * sum(_size(shard) for matrix in self.matrices for shard in matrix.shards)

    def own(self, worker: int) -> Any:
        return [matrix.shards[worker] for matrix in self.matrices]

    def packed(self) -> WorkerFactory:
        return _MatrixWorkers(())

    def make(self, owned: Mapping[int, Any], site: Site) -> list[Any]:
        return [_Multiplier(worker, shards) for worker, shards in owned.items()]


@dataclass(frozen=True)
class _Multiplier:
    """A worker: its id, and its shards."""

    id: int
    shards: Sequence[Tensor]


@dataclass(frozen=True)
class _Multiply(Task):
    """The product with a shard."""

    queued: ClassVar[bool] = True

    matrix: int
    x: Tensor
    delays_s: tuple[float, ...]

    def run(self, worker: _Multiplier, is_over: Callable[[], bool] = lambda: False) -> Reply:
        end = time.monotonic() + self.delays_s[worker.id]
        while (left := end - time.monotonic()) > 0 and not is_over():
            time.sleep(min(left, _NAP_S))
        products = []
        for piece in _pieces(worker.shards[self.matrix]):
            if is_over():
                return Reply(missing="late")
            products.append(piece @ self.x)
        return Reply(torch.cat(products))

    def run_together(self, workers: Sequence[_Multiplier]) -> Iterator[tuple[int, Reply]]:
        """On a virtual clock nobody sleeps."""
        for worker in workers:
            product = torch.cat([one @ self.x for one in _pieces(worker.shards[self.matrix])])
            yield worker.id, Reply(product, delay_s=self.delays_s[worker.id])


def _pieces(shard: Tensor) -> Sequence[Tensor]:
    """The rows of a dense shard some at a time; a sparse one whole, as it cannot be cut cheaply."""
    if shard.layout != torch.strided:
        return [shard]
    pieces: Sequence[Tensor] = shard.split(max(1, _PIECE // shard.shape[1]))
    return pieces


def _size(shard: Tensor) -> int:
    """Bytes of a shard."""
    if shard.layout == torch.strided:
        return shard.nbytes
    return sum(part.nbytes for part in (shard.crow_indices(), shard.col_indices(), shard.values()))
