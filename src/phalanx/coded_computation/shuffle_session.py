"""Coded shuffling by workers: they hold caches, and the server multicasts packets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from phalanx.coded_computation.coded_shuffle import CodedShuffle
from phalanx.coded_computation.row_bytes import pack_rows, unpack_rows
from phalanx.coded_computation.shuffle_plan import RowCache, ShufflePlan
from phalanx.errors import PhalanxError
from phalanx.training import Collector, Engine, Reply, Site, Task, WorkerFactory
from phalanx.training.engines.base import telling


class Delivery(NamedTuple):
    """What the delivery of an epoch's rows took.

    Attributes:
        epoch: which.
        coded_bytes: bytes of the packets.
        uncoded_bytes: bytes of the rows that are in them, which are sent without coding.
        plan_bytes: bytes that say which rows are in which packet.
        refilled: workers that died or were too late, started anew with what they were to hold.
        refilled_bytes: bytes of that.
        reasons: why they did not take the packets in, by worker.
    """

    epoch: int
    coded_bytes: int
    uncoded_bytes: int
    plan_bytes: int
    refilled: tuple[int, ...]
    refilled_bytes: int
    reasons: Mapping[int, str] = MappingProxyType({})


class ShuffleSession:
    """Coded shuffling on an engine, whose workers hold their caches; a context manager.

    The server holds all rows. It sends an epoch's packets once, from where every worker reads them;
    on a cluster Ray copies them once to each machine.

    Trust: see the engine.

    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded shuffling.

    >>> import torch
    >>> from phalanx.coded_computation import CodedShuffle, ShuffleSession
    >>> from phalanx.training import Local
    >>> shuffle = CodedShuffle(num_workers=3, num_rows=60, cache_fraction=0.6)
    >>> with ShuffleSession(Local(), shuffle, [torch.arange(60)]) as session:
    ...     delivery = session.advance()
    ...     sorted(torch.cat(session.map(lambda rows: rows)).tolist()) == list(range(60))
    True
    >>> delivery.coded_bytes < delivery.uncoded_bytes
    True

    Args:
        engine: where the workers are.
        shuffle: deals the rows out.
        tensors: the data set, of `num_rows` rows each, as in a `TensorDataset`.

    Raises:
        ValueError: if the tensors do not have as many rows.
    """

    def __init__(self, engine: Engine, shuffle: CodedShuffle, tensors: Sequence[Tensor]) -> None:
        content = pack_rows(tensors)
        if len(content) != shuffle.num_rows:
            raise ValueError(
                f"tensors must have num_rows = {shuffle.num_rows} rows, got {len(content)}"
            )
        self._shuffle, self._content, self._epoch = shuffle, content, 0
        self._caches = [shuffle.start()]  # as they are to be; the factory reads them at each start
        like = tuple(one[:0] for one in tensors)
        self._session = engine.start(_CacheWorkers(shuffle, like, content, self._caches))

    def advance(self) -> Delivery:
        """Delivers the next epoch's rows; returns what was sent."""
        epoch, caches = self._epoch + 1, self._caches[0]
        plan = self._shuffle.plan(epoch, caches)
        packets = self._shuffle.encode(plan, self._content)
        self._epoch, self._caches[0] = epoch, self._shuffle.update(epoch, caches)
        done = Collector()
        replies = self._session.call(
            _Deliver(epoch, plan, packets), self._everybody, collector=done
        )
        lost = tuple(worker for worker in self._everybody if worker not in done.values)
        self._session.restart(lost)
        width = self._content.shape[1]
        return Delivery(
            epoch,
            packets.nbytes,
            plan.num_needed * width,
            plan.num_bytes,
            lost,
            int(self._caches[0][list(lost)].sum()) * width,
            replies.missing,
        )

    def map(self, function: Callable[..., Any]) -> list[Any]:
        """Calls a function on each worker, with the tensors of its share of the epoch.

        Args:
            function: as many arguments as the data set has tensors; it and its result are pickled.

        Raises:
            PhalanxError: if a worker dies, is late, or the function fails; a note has its
                traceback.
        """
        done = Collector()
        replies = self._session.call(_Map(self._epoch, function), self._everybody, collector=done)
        if replies.missing:
            worker, reason = next(iter(replies.missing.items()))
            with telling(replies.failures):
                raise PhalanxError(f"function must end on every worker, got {reason} of {worker}")
        return [done.values[worker] for worker in self._everybody]

    def close(self) -> None:
        """Stops the workers."""
        self._session.close()

    def __enter__(self) -> "ShuffleSession":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def _everybody(self) -> range:
        return range(self._shuffle.num_workers)


@dataclass(frozen=True)
class _CacheWorkers(WorkerFactory):
    """Workers that hold rows."""

    shuffle: CodedShuffle
    like: tuple[Tensor, ...]
    content: Tensor | None
    caches: list[Tensor]

    @property
    def num_workers(self) -> int:
        return self.shuffle.num_workers

    @property
    def held_bytes(self) -> int:
        assert self.content is not None
        filled = self.num_workers * self.shuffle.capacity * self.content.shape[1]
        return filled + 2 * self.content.nbytes

    def own(self, worker: int) -> Any:
        assert self.content is not None
        rows = self.caches[0][worker].nonzero().flatten()
        return rows, self.content[rows]

    def packed(self) -> WorkerFactory:
        return _CacheWorkers(self.shuffle, self.like, None, [])

    def make(self, owned: Mapping[int, Any], site: Site) -> list[Any]:
        return [
            _Holder(worker, self.shuffle, self.like, RowCache(*held))
            for worker, held in owned.items()
        ]


@dataclass
class _Holder:
    """A worker and its cache."""

    id: int
    shuffle: CodedShuffle
    like: tuple[Tensor, ...]
    cache: RowCache


@dataclass(frozen=True)
class _Deliver(Task):
    """Decodes the rows of an epoch, and keeps what fits."""

    queued: ClassVar[bool] = True

    plan: ShufflePlan
    packets: Tensor

    def run(self, worker: _Holder, is_over: Callable[[], bool] = lambda: False) -> Reply:
        worker.cache = worker.shuffle.decode(self.plan, worker.id, self.packets, worker.cache)
        return Reply(True)


@dataclass(frozen=True)
class _Map(Task):
    """A function of the share of the epoch."""

    queued: ClassVar[bool] = True

    function: Callable[..., Any]

    def run(self, worker: _Holder, is_over: Callable[[], bool] = lambda: False) -> Reply:
        share = worker.cache.read(worker.shuffle.share(worker.id, self.step))
        return Reply(self.function(*unpack_rows(share, worker.like)))
