"""Coded matrix products on Ray: the product comes from the workers that answer first."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.coded_computation.coded_matmul import CodedMatrix, Product
from phalanx.communication.serialization import SharedTensor
from phalanx.training.engines.ray_actors import ActorSession, RayActors

_PIECE = 2**22  # numbers of a shard that are multiplied before a worker asks if it may stop


class TimedProduct(NamedTuple):
    """A product, and how it came about.

    Attributes:
        product: the decoded product.
        arrived: `(workers,)` bool, whose result it was decoded from.
        duration_s: seconds from handing out the tasks to the decoded product.
    """

    product: Product
    arrived: Bool[Tensor, " workers"]
    duration_s: float


@dataclass(frozen=True)
class RayMatmul(RayActors):
    """Coded products with workers as Ray actors, each of which holds its shards.

    The server sends shards once, and an operand each time; it takes results until they can be
    decoded, and cancels the rest. A worker that is cancelled stops between two pieces of its shard.
    One that fails or answers nonsense is an erasure; so is one that dies, and it is started anew.

    Trust: Ray authenticates nobody, and unpickles what it is sent; see `Ray`.

    Cost: shared memory for all shards, n / k times the matrices.

    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded computation.
    """

    def start(self, *matrices: CodedMatrix) -> "RayMatmulSession":
        """Connects to Ray, or starts it, and hands out the shards.

        Args:
            matrices: at least one; all coded for as many workers.

        Raises:
            ImportError: if Ray is not installed.
            ConnectionError: if nothing answers at `address`.
            ValueError: if there is no matrix, or the numbers of workers differ.
        """
        if len({matrix.code.num_workers for matrix in matrices}) != 1:
            raise ValueError(
                "matrices must be at least 1, coded for equally many workers, got "
                f"{[matrix.code.num_workers for matrix in matrices]}"
            )
        return RayMatmulSession(self, matrices)


class RayMatmulSession(ActorSession):
    """Workers that hold their shards; made by `RayMatmul.start`."""

    def __init__(self, settings: RayMatmul, matrices: Sequence[CodedMatrix]) -> None:
        sizes = [_size(shard) for matrix in matrices for shard in matrix.shards]
        super().__init__(settings, 2 * sum(sizes))
        self._matrices, self._round = tuple(matrices), 0
        try:
            self._packed = [
                [self.ray.put(_pack(shard)) for shard in shards]
                for shards in zip(*(matrix.shards for matrix in matrices), strict=True)
            ]
            self.actors = [self._started(worker) for worker in range(len(self._packed))]
            self.await_start()
        except BaseException:  # whatever interrupts the start, Ctrl-C among it
            self.close()
            raise

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
            delays_s: seconds that each worker sleeps first, in a drill.

        Raises:
            DecodeError: if too few results come before the deadline.
            ValueError: if the session does not hold the matrix, or `x` does not fit it.
        """
        number = self._number(matrix)
        results, arrived = matrix.table(x), torch.zeros(len(self.actors), dtype=torch.bool)
        suspects = arrived.clone()
        self._round += 1
        operand = self.ray.put(SharedTensor.pack(x))
        delays = [0.0] * len(self.actors) if delays_s is None else delays_s.tolist()
        began = time.monotonic()
        pending = {
            actor.multiply.remote(self._round, number, operand, delays[worker]): worker
            for worker, actor in enumerate(self.actors)
        }
        while pending and not matrix.code.can_decode(arrived):
            left = max(0.0, began + self.settings.deadline_s - time.monotonic())
            done, _ = self.ray.wait(list(pending), num_returns=1, timeout=left)
            if not done:
                break
            worker = pending.pop(done[0])
            result = self._result(worker, done[0])
            if result is None:
                continue
            if matrix.fits(result, x):
                results[worker], arrived[worker] = result, True
            else:
                suspects[worker] = True
        for worker in pending.values():
            self.actors[worker].cancel.remote(self._round)
        product = matrix.decode(results, arrived)._replace(suspects=suspects)
        return TimedProduct(product, arrived, time.monotonic() - began)

    def _number(self, matrix: CodedMatrix) -> int:
        for number, held in enumerate(self._matrices):
            if held is matrix:
                return number
        raise ValueError("matrix must be one that the session was started with")

    def _started(self, worker: int) -> Any:
        """A new process of a worker; one of its threads multiplies, the other is told to stop."""
        threads = self.settings.threads_per_worker
        return self.start(_Multiplier, threads, *self._packed[worker], max_concurrency=2)

    def _result(self, worker: int, task: Any) -> Tensor | None:
        """A worker's result; None if it failed or died."""
        try:
            reply: SharedTensor | None = self.ray.get(task, timeout=self.settings.deadline_s)
        except self.ray.exceptions.RayActorError:
            self.ray.kill(self.actors[worker])
            self.actors[worker] = self._started(worker)
            return None
        except self.ray.exceptions.RayError:
            return None
        return None if reply is None else reply.unpack()


class _Multiplier:
    """The process of a worker."""

    def __init__(self, threads: int, *shards: SharedTensor | Tensor) -> None:
        torch.set_num_threads(threads)
        self._shards = [s.unpack() if isinstance(s, SharedTensor) else s for s in shards]
        self._cancelled, self._wake = 0, threading.Event()

    def multiply(
        self, number: int, matrix: int, x: SharedTensor, delay_s: float
    ) -> SharedTensor | None:
        """The product with a shard; None if it was cancelled."""
        self._wake.clear()  # before the question: a call to stop either answers it or wakes us
        if self._cancelled < number:
            self._wake.wait(delay_s)
        operand, products = x.unpack(), []
        for piece in _pieces(self._shards[matrix]):
            if self._cancelled >= number:
                return None
            products.append(piece @ operand)
        return SharedTensor.pack(torch.cat(products))

    def cancel(self, number: int) -> None:
        """Ends the product of a round, and of those before."""
        self._cancelled = max(self._cancelled, number)
        self._wake.set()


def _pieces(shard: Tensor) -> Sequence[Tensor]:
    """The rows of a dense shard some at a time; a sparse one whole, as it cannot be cut cheaply."""
    if shard.layout != torch.strided:
        return [shard]
    pieces: Sequence[Tensor] = shard.split(max(1, _PIECE // shard.shape[1]))
    return pieces


def _pack(shard: Tensor) -> SharedTensor | Tensor:
    """A shard as it is put into shared memory."""
    return SharedTensor.pack(shard) if shard.layout == torch.strided else shard


def _size(shard: Tensor) -> int:
    """Bytes of a shard."""
    if shard.layout == torch.strided:
        return shard.nbytes
    return sum(part.nbytes for part in (shard.crow_indices(), shard.col_indices(), shard.values()))
