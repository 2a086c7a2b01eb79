"""Accordion: adaptive compression by critical learning regimes."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.communication.collectives import (
    AllGather,
    AllReduce,
    Answer,
    Exchange,
    ExchangeContext,
    Request,
    State,
)
from phalanx.compression.averaging import TensorStates
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.critical_regimes import CriticalRegimes, Regime
from phalanx.compression.error_feedback import ErrorFeedback
from phalanx.compression.levels import exchange_by_level, labelled, labelled_layout
from phalanx.compression.message import Message, Part, parse
from phalanx.compression.power_sgd import PowerSGD
from phalanx.compression.uncompressed import Uncompressed
from phalanx.compression.wrapper import Wrapper
from phalanx.errors import require
from phalanx.floats import euclidean_norm, power_of_two, working

Level = Literal["low", "high", "dense"]
LEVELS: tuple[Level, ...] = ("low", "high", "dense")
_LOW, _HIGH, _DENSE = range(3)
_NONE = -1.0  # no norm yet; not NaN, so that records can be compared
_Norms = Generator[Request, Answer, list[float]]


class _Record(NamedTuple):
    """The last tensor of a state: what the detector remembers of a tensor.

    Attributes:
        step: rounds so far.
        norm: at the last check; negative before the first.
        level: of the compressor that left the state before it.
        wanted: level of the next round.
    """

    step: float
    norm: float
    level: float
    wanted: float

    @classmethod
    def of(cls, state: State) -> "_Record":
        return cls(*state[-1].tolist())

    def tensor(self) -> Tensor:
        return torch.tensor(self, dtype=torch.float64)  # on the CPU: read in every round


@dataclass(frozen=True)
class Accordion(Compressor):
    """Uses `low` compression in critical regimes and `high` compression elsewhere.

    `CriticalRegimes` decides, for every tensor by itself, at the end of every `interval`-th epoch.
    Before the first two checks, and from a drop of the learning rate to the next check, compression
    is low. Drops are either known before (`milestones`), or announced (`alert`), on all workers.

    All workers come to the same levels, as they look at the same norms, and at the same time. Where
    tensors are encoded one by one (`update`; robust rules want that), every worker goes by its own
    tensor, and its messages say their level. A change of level keeps the memory of errors and the
    columns of warm factors that both levels have. Put error feedback inside, around both levels, or
    around neither: then the norms are those of gradients without memory.

    Wire: in a round that of the level, nothing else; once in `interval` epochs one number a tensor,
    unless the norm is that of the aggregate. A single message has its level before it: one byte,
    and four of its length.
    Cost: that of the level, in up to three exchanges per round: one per level, one for vectors. One
    addition, and memory for one more tensor, in the epochs that are looked at.
    Source: Agarwal, Wang, Lee, Venkataraman, Papailiopoulos, "Adaptive Gradient Communication via
    Critical Learning Regime Identification", MLSys 2021, algorithm 1.

    >>> import torch
    >>> from phalanx.compression import Accordion, TensorStates, TopK, simulate
    >>> compressor = Accordion(TopK(ratio=0.5), TopK(ratio=0.1), steps_per_epoch=1, interval=1)
    >>> memories, levels = [TensorStates()], []
    >>> for step in range(3):
    ...     _, memories = simulate(compressor, [{"weight": torch.ones(5, 2)}], memories)
    ...     levels.append(compressor.levels(memories[0])["weight"])
    >>> levels  # of the round that follows
    ['low', 'high', 'high']
    """

    low: Compressor = field(default_factory=lambda: ErrorFeedback(PowerSGD(rank=2)))
    """Compressor of critical regimes."""
    high: Compressor = field(default_factory=lambda: ErrorFeedback(PowerSGD(rank=1)))
    """Compressor elsewhere."""
    eta: float = 0.5
    """Share by which a norm must change for a critical regime."""
    steps_per_epoch: int = 100
    """Rounds whose gradients are summed before a norm is taken of them."""
    interval: int = 10
    """Epochs from one check to the next."""
    milestones: tuple[int, ...] = ()
    """Epochs, counted from 0, whose learning rate is below that of the epoch before: what
    `torch.optim.lr_scheduler.MultiStepLR` calls so. Not for rates that shrink all the time: there
    would be no high compression."""
    scope: Literal["layer", "model"] = "layer"
    """Whether every tensor has its own level, or all tensors of a round change together."""
    norm: Literal["mean-local", "aggregated", "rank0"] = "mean-local"
    """Whose gradients the norm is of: each worker's own, as the root of the mean square over the
    workers; the decoded mean, which all workers know; or worker 0's own, as in the published code.
    The decoded mean only with error feedback: without it a change of level changes its norm, which
    looks like a critical regime, and levels go to and fro."""
    vectors: bool = False
    """Whether tensors of fewer than two axes are compressed, too, instead of sent as they are."""
    verify: bool = False
    """Whether workers compare their levels before every round, one byte a tensor: for finding out
    who has other milestones, or an alert of its own."""

    def __post_init__(self) -> None:
        self.regimes  # noqa: B018 - checks eta and interval
        require_at_least(1, steps_per_epoch=self.steps_per_epoch)
        if any(epoch < 1 for epoch in self.milestones):
            raise ValueError(f"milestones must be at least 1, got {self.milestones}")
        if self.scope not in ("layer", "model"):
            raise ValueError(f"scope must be layer or model, got {self.scope}")
        if self.norm not in ("mean-local", "aggregated", "rank0"):
            raise ValueError(f"norm must be mean-local, aggregated or rank0, got {self.norm}")
        if _wrapper(self.low) is not _wrapper(self.high):
            raise ValueError(
                "low and high must be wrapped alike, in error feedback for instance, or a memory "
                f"would be lost; got {self.low} and {self.high}"
            )

    @property
    def regimes(self) -> CriticalRegimes:
        """The detector."""
        return CriticalRegimes(self.eta, self.interval)

    def levels(self, memory: TensorStates) -> dict[str, Level]:
        """Level of every tensor in the next round; "dense" for those that are sent as they are."""
        return {
            name: LEVELS[int(_Record.of(state).wanted)] for name, state in memory.states.items()
        }

    def alert(self, memory: TensorStates) -> TensorStates:
        """The memory from which compression is low until the next check: the learning rate drops.

        Call it on all workers, between the same two rounds.
        """
        states = {}
        for name, state in memory.states.items():
            record = _Record.of(state)
            wanted = _DENSE if record.wanted == _DENSE else _LOW
            states[name] = (*state[:-1], record._replace(wanted=wanted).tensor())
        return memory._replace(states=states)

    @property
    def unbiased(self) -> bool:
        """If both are."""
        return self.low.unbiased and self.high.unbiased

    @property
    def fixed_size(self) -> bool:
        """False: the level decides."""
        return False

    @property
    def random(self) -> bool:
        """If one of them is."""
        return self.low.random or self.high.random

    @property
    def needs_shared_randomness(self) -> bool:
        """If one of them does."""
        return self.low.needs_shared_randomness or self.high.needs_shared_randomness

    @property
    def per_tensor_shape(self) -> bool:
        """True where vectors are sent as they are, or if it matters to one of them."""
        shaped = self.low.per_tensor_shape or self.high.per_tensor_shape
        return shaped or not self.vectors

    def contraction(self, dim: int) -> float | None:
        """The worse of both."""
        bounds = [one.contraction(dim) for one in (self.low, self.high)]
        known = [bound for bound in bounds if bound is not None]
        return min(known) if len(known) == len(bounds) else None

    def variance_bound(self, dim: int) -> float | None:
        """The worse of both."""
        bounds = [one.variance_bound(dim) for one in (self.low, self.high)]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if len(known) == len(bounds) else None

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Level, bytes of the message of that level."""
        return labelled_layout(map(self._codec, self._allowed(shape)), shape, dtype)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """At the level of a first round."""
        level = self._allowed(tuple(x.shape))[0]
        return labelled(level, self._codec(level).encode(x, generator))

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """As the level says."""
        codec = self._codec(int(parts[0]))
        return codec.decode(parse(parts[1], shape, dtype, codec.layout(shape, dtype)))

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """The level is one of this tensor's, and the bytes are a message of it."""
        level = int(parts[0])
        require(level in self._allowed(shape), "have a level that its tensor may have")
        self._codec(level).from_bytes(parts[1], shape, dtype)

    def init(self, like: Float[Tensor, "..."]) -> State:
        """The state of the level, an empty sum, and a record of the past."""
        level = self._allowed(tuple(like.shape))[0]
        record = _Record(0, _NONE, level, level)
        return (*self._codec(level).init(like), _no_sum(like), record.tensor())

    def update(
        self, x: Float[Tensor, "..."], state: State, generator: torch.Generator | None = None
    ) -> tuple[Message, State]:
        """Encodes at the level of the state; the norm is that of what a lone worker knows."""
        record = _Record.of(state)
        codec = self._codec(int(record.wanted))
        inner = self._inherited(x, state, generator)
        inside, inner = codec.update(x, inner, generator)
        message = Message(inside.shape, inside.dtype, (), ())
        if x.numel():
            layout = self.layout(inside.shape, inside.dtype)
            message = message._replace(layout=layout, parts=labelled(int(record.wanted), inside))
        total = self._sum(record, state[-2], self._followed([codec.decode(inside)], [x])[0])
        norms = [_norm(total)] if self._is_due(record) else []
        return message, self._next([record], [inner], [total], norms)[0]

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """An exchange for each level; then a look at the norms, if it is time for it."""
        records = [_Record.of(state) for state in states]
        if self.verify:
            yield from _verify(records, tensors)
        if self.norm != "aggregated":  # the tensors are looked at after they were averaged
            context = context._replace(out=None)
        inner = [
            self._inherited(
                x, state, context.generator(place, shared=True) if self.random else None
            )
            for place, (x, state) in enumerate(zip(tensors, states, strict=True))
        ]
        levels = [int(record.wanted) for record in records]
        result = yield from exchange_by_level(self._codec, levels, tensors, inner, context)
        inner = result.states
        followed = self._followed(result.mean, tensors)
        totals = [
            self._sum(record, state[-2], x)
            for record, state, x in zip(records, states, followed, strict=True)
        ]
        due = [place for place, record in enumerate(records) if self._is_due(record)]
        looked_at, told = [totals[place] for place in due], [result.mean[place] for place in due]
        norms = (yield from self._norms(looked_at, told, context)) if due else []
        return result._replace(states=self._next(records, inner, totals, norms))

    def _codec(self, level: int) -> Compressor:
        return (self.low, self.high, Uncompressed())[level]

    def _allowed(self, shape: Shape) -> tuple[int, ...]:
        """Levels that a tensor of this shape may have; first that of the first round."""
        return (_LOW, _HIGH) if self.vectors or len(shape) >= 2 else (_DENSE,)

    def _inherited(self, x: Tensor, state: State, generator: torch.Generator | None) -> State:
        """The state of the level that is wanted, made from that of the level before."""
        record = _Record.of(state)
        if record.level == record.wanted:
            return state[:-2]
        after, before = self._codec(int(record.wanted)), self._codec(int(record.level))
        return after.inherit(x, state[:-2], before, generator)

    def _epoch(self, record: _Record) -> int:
        """In which epoch the round of a record is."""
        return int(record.step) // self.steps_per_epoch

    def _ends_epoch(self, record: _Record) -> bool:
        return (int(record.step) + 1) % self.steps_per_epoch == 0

    def _is_due(self, record: _Record) -> bool:
        """Whether the norm is to be taken after this round."""
        looked_at = record.level != _DENSE and self.regimes.checks(self._epoch(record))
        return looked_at and self._ends_epoch(record)

    def _followed(self, means: list[Tensor], own: list[Tensor]) -> list[Tensor]:
        """The tensors whose sums are looked at."""
        return means if self.norm == "aggregated" else own

    def _sum(self, record: _Record, total: Tensor, x: Tensor) -> Tensor:
        """The sum over an epoch that is looked at; without values in others."""
        if record.level == _DENSE or not self.regimes.checks(self._epoch(record)):
            return _no_sum(x)
        wide = x.detach().to(working(x.dtype))
        return total + wide if int(record.step) % self.steps_per_epoch else wide.clone()

    def _norms(self, totals: list[Tensor], means: list[Tensor], context: ExchangeContext) -> _Norms:
        """The norms of these sums, given what all workers know; the same on all workers."""
        norms = torch.tensor(
            [_norm(total) for total in totals], dtype=torch.float64, device=totals[0].device
        )
        if self.norm == "mean-local":
            # In units that all know, as squares may over- or underflow.
            units = torch.stack([power_of_two(mean).double() for mean in means])
            squares = yield AllReduce((norms / units).square() / context.num_workers)
            assert isinstance(squares, Tensor)
            norms = squares.sqrt() * units
        elif self.norm == "rank0":
            told = yield AllReduce(norms if context.worker == 0 else torch.zeros_like(norms))
            assert isinstance(told, Tensor)
            norms = told
        return norms.tolist()

    def _next(
        self,
        records: list[_Record],
        inner: list[State],
        totals: list[Tensor],
        norms: list[float],
    ) -> list[State]:
        """The states after a round, given the norms of those tensors that are due."""
        whole = math.hypot(*norms)
        given = iter([whole] * len(norms) if self.scope == "model" else norms)
        states = []
        for record, state, total in zip(records, inner, totals, strict=True):
            due = self._is_due(record)
            after = self._after(record, next(given) if due else math.nan)
            states.append((*state, _no_sum(total) if due else total, after.tensor()))
        return states

    def _after(self, record: _Record, norm: float) -> _Record:
        """The record after a round."""
        now = record._replace(step=record.step + 1, level=record.wanted)
        if record.wanted == _DENSE or not self._ends_epoch(record):
            return now
        epoch = self._epoch(record)
        known = record.norm if record.norm >= 0 else None
        regime = Regime(epoch, known, record.wanted == _LOW)
        regime = self.regimes.update(regime, norm, drops=epoch + 1 in self.milestones)
        kept = _NONE if regime.norm is None else regime.norm
        return now._replace(norm=kept, wanted=_LOW if regime.critical else _HIGH)


def _wrapper(compressor: Compressor) -> type[Compressor] | None:
    """What remembers things around a compressor."""
    return type(compressor) if isinstance(compressor, Wrapper) else None


def _no_sum(like: Tensor) -> Tensor:
    return like.new_zeros(0, dtype=working(like.dtype))


def _norm(total: Tensor) -> float:
    return float(euclidean_norm(total))


def _verify(records: list[_Record], tensors: list[Tensor]) -> Generator[Request, Answer, None]:
    """Raises the same error on all workers unless all have the same levels."""
    device = tensors[0].device if tensors else torch.device("cpu")
    own = torch.tensor([int(record.wanted) for record in records], dtype=torch.uint8, device=device)
    rows = yield AllGather(own, equal=True)
    other = [worker for worker, row in enumerate(rows) if not torch.equal(row, rows[0])]
    if other:
        raise RuntimeError(f"levels must be those of worker 0 on all workers, not so on {other}")
