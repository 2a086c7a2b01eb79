"""Coded shuffling on Ray: workers hold caches, and the server multicasts packets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phalanx.coded_computation.coded_shuffle import CodedShuffle
from phalanx.coded_computation.row_bytes import pack_rows, unpack_rows
from phalanx.coded_computation.shuffle_plan import RowCache, ShufflePlan
from phalanx.communication.serialization import SharedTensor
from phalanx.training.engines.ray_actors import ActorSession, RayActors


class ShuffleTraffic(NamedTuple):
    """What the delivery of an epoch took.

    Attributes:
        epoch: which.
        coded_bytes: bytes of the packets.
        uncoded_bytes: bytes of the rows that are in them, which are sent without coding.
        plan_bytes: bytes that say which rows are in which packet.
        refilled: workers that died or were too late, started anew with what they were to hold.
        refilled_bytes: bytes of that.
    """

    epoch: int
    coded_bytes: int
    uncoded_bytes: int
    plan_bytes: int
    refilled: tuple[int, ...]
    refilled_bytes: int


@dataclass(frozen=True)
class RayShuffle(RayActors):
    """Coded shuffling with workers as Ray actors, each of which holds its cache.

    The server holds all rows. It puts an epoch's packets into the object store once, from where
    every worker reads them; on a cluster Ray copies them once to each machine.

    Trust: Ray authenticates nobody, and unpickles what it is sent; see `Ray`.

    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded shuffling.
    """

    def start(self, shuffle: CodedShuffle, tensors: Sequence[Tensor]) -> "RayShuffleSession":
        """Connects to Ray, or starts it, and fills the caches with the rows of epoch 0.

        Args:
            shuffle: deals the rows out.
            tensors: the data set, of `num_rows` rows each, as in a `TensorDataset`.

        Raises:
            ImportError: if Ray is not installed.
            ConnectionError: if nothing answers at `address`.
            ValueError: if the tensors do not have as many rows.
        """
        content = pack_rows(tensors)
        if len(content) != shuffle.num_rows:
            raise ValueError(
                f"tensors must have num_rows = {shuffle.num_rows} rows, got {len(content)}"
            )
        return RayShuffleSession(self, shuffle, content, [one[:0] for one in tensors])


class RayShuffleSession(ActorSession):
    """Workers that hold their caches; made by `RayShuffle.start`."""

    def __init__(
        self,
        settings: RayShuffle,
        shuffle: CodedShuffle,
        content: Tensor,
        like: Sequence[Tensor],
    ) -> None:
        filled = shuffle.num_workers * shuffle.capacity * content.shape[1]
        super().__init__(settings, filled + 2 * content.nbytes)
        self._shuffle, self._content, self._like = shuffle, content, like
        self._epoch, self._caches = 0, shuffle.start()
        try:
            self.actors = [self._filled(worker) for worker in range(shuffle.num_workers)]
            self.await_start()
        except BaseException:
            self.close()
            raise

    def advance(self) -> ShuffleTraffic:
        """Delivers the next epoch's rows; returns what was sent."""
        epoch = self._epoch + 1
        plan = self._shuffle.plan(epoch, self._caches)
        packets = self._shuffle.encode(plan, self._content)
        lent = self.ray.put((plan, SharedTensor.pack(packets)))
        tasks = [actor.deliver.remote(lent) for actor in self.actors]
        self._epoch, self._caches = epoch, self._shuffle.update(epoch, self._caches)
        self.ray.wait(tasks, num_returns=len(tasks), timeout=self.settings.deadline_s)
        lost = tuple(worker for worker, task in enumerate(tasks) if not self._done(task))
        for worker in lost:
            self.ray.kill(self.actors[worker])
            self.actors[worker] = self._filled(worker)
        width = self._content.shape[1]
        return ShuffleTraffic(
            epoch,
            packets.nbytes,
            plan.num_needed * width,
            plan.num_bytes,
            lost,
            int(self._caches[list(lost)].sum()) * width,
        )

    def map(self, function: Callable[..., Any]) -> list[Any]:
        """Calls a function on each worker, with the tensors of its share of the epoch.

        Args:
            function: as many arguments as the data set has tensors; it and its result are pickled.

        Raises:
            ray.exceptions.RayError: if a worker dies or the function fails.
        """
        tasks = [actor.map.remote(self._epoch, function) for actor in self.actors]
        answers: list[Any] = self.ray.get(tasks, timeout=self.settings.deadline_s)
        return answers

    def _filled(self, worker: int) -> Any:
        """A new process of a worker, with the cache that it is to have."""
        rows = self._caches[worker].nonzero().flatten()
        packed = self.ray.put(SharedTensor.pack(self._content[rows]))
        threads = self.settings.threads_per_worker
        return self.start(_Holder, worker, self._shuffle, self._like, threads, rows, packed)

    def _done(self, task: Any) -> bool:
        """Whether it has ended, and well."""
        try:
            self.ray.get(task, timeout=0)
        except self.ray.exceptions.RayError:
            return False
        return True


class _Holder:
    """The process of a worker."""

    def __init__(
        self,
        worker: int,
        shuffle: CodedShuffle,
        like: Sequence[Tensor],
        threads: int,
        rows: Tensor,
        content: SharedTensor,
    ) -> None:
        torch.set_num_threads(threads)
        self._worker, self._shuffle, self._like = worker, shuffle, like
        self._cache = RowCache(rows, content.unpack())

    def deliver(self, sent: tuple[ShufflePlan, SharedTensor]) -> None:
        """Decodes the rows of an epoch, and keeps what fits."""
        plan, packets = sent
        decoded = self._shuffle.decode(plan, self._worker, packets.unpack(), self._cache)
        self._cache = decoded

    def map(self, epoch: int, function: Callable[..., Any]) -> Any:
        """A function of the share of the epoch."""
        share = self._cache.read(self._shuffle.share(self._worker, epoch))
        return function(*unpack_rows(share, self._like))
