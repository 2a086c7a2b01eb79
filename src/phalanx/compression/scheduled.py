"""Compression by a schedule: none before a step, then a ratio that falls to its own."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_at_least, require_share
from phalanx.communication.collectives import Exchange, ExchangeContext, State
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.levels import exchange_by_level, labelled, labelled_layout
from phalanx.compression.message import Message, Part, parse
from phalanx.compression.uncompressed import Uncompressed
from phalanx.compression.wrapper import Wrapper
from phalanx.errors import require

_FINAL, _DENSE, _FIRST = range(3)  # levels; from the last one on those of the warm-up


@dataclass(frozen=True)
class Scheduled(Wrapper):
    """Sends tensors whole before `start_step`, then more of them than later, in a warm-up.

    In the first epochs gradients change fast, and what is not sent of them is stale when it is. In
    epoch `e` of a warm-up of `E` epochs `first_ratio (ratio / first_ratio)^(e / E)` takes the place
    of the inner `ratio`: with four epochs from 25 % to 0.1 %, that is 25, 6.3, 1.6 and 0.4 %.

    What was counted is part of the state: a run that is resumed goes on in its schedule. What the
    inner compressor remembers begins at `start_step`, and is kept throughout the warm-up, the
    memory of errors above all. Put error feedback or momentum correction inside.
    Wire: in a round that of the level, nothing else; a single message has its level before it, one
    byte, and four of its length.
    Source: Lin, Han, Mao, Wang, Dally, "Deep Gradient Compression: Reducing the Communication
    Bandwidth for Distributed Training", ICLR 2018, section 3.3 (the warm-up); Vogels, Karimireddy,
    Jaggi, "PowerSGD", NeurIPS 2019, as its authors' library and PyTorch start it late.

    >>> from phalanx.compression import ErrorFeedback, TopK
    >>> compressor = Scheduled(ErrorFeedback(TopK(0.001)), 50, warm_up_epochs=4, steps_per_epoch=10)
    >>> [str(compressor.at(step).inner) for step in (50, 65, 75, 85, 90)]
    ['TopK(ratio=0.25)', 'TopK(ratio=0.0629)', 'TopK(ratio=0.0158)', 'TopK(ratio=0.00398)', \
'TopK(ratio=0.001)']
    >>> compressor.at(49)
    Uncompressed()
    """

    start_step: int = 0
    """Rounds before it send tensors as they are."""
    warm_up_epochs: int = 0
    """Epochs of warm-up from there on; for compressors with a `ratio`."""
    steps_per_epoch: int = 100
    """Rounds of an epoch."""
    first_ratio: float = 0.25
    """Ratio in the first epoch of the warm-up."""

    def __post_init__(self) -> None:
        require_at_least(0, start_step=self.start_step, warm_up_epochs=self.warm_up_epochs)
        require_at_least(1, steps_per_epoch=self.steps_per_epoch)
        require_share(first_ratio=self.first_ratio)
        if self.warm_up_epochs > 250:
            raise ValueError(f"warm_up_epochs must be at most 250, got {self.warm_up_epochs}")
        if self.warm_up_epochs and _ratio(self.inner) is None:
            raise ValueError(f"inner must have a ratio for a warm-up, got {self.inner}")

    def at(self, step: int) -> Compressor:
        """The compressor of a round."""
        return self._codec(self._level(step))

    @property
    def fixed_size(self) -> bool:
        """False: the level decides."""
        return False

    @property
    def reducible(self) -> bool:
        """False: single messages say their level."""
        return False

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Level, bytes of the message of that level."""
        return labelled_layout(map(self._codec, self._levels), shape, dtype)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """At the level of a first round."""
        level = self._level(0)
        return labelled(level, self._codec(level).encode(x, generator))

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """As the level says."""
        codec = self._codec(int(parts[0]))
        return codec.decode(parse(parts[1], shape, dtype, codec.layout(shape, dtype)))

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """The level is one of the schedule, and the bytes are a message of it."""
        require(int(parts[0]) in self._levels, "have a level of the schedule")
        self._codec(int(parts[0])).from_bytes(parts[1], shape, dtype)

    def init(self, like: Float[Tensor, "..."]) -> State:
        """The state of the first level, and no round counted."""
        return (*self.at(0).init(like), torch.zeros((), dtype=torch.int64))

    def inherit(
        self,
        like: Float[Tensor, "..."],
        state: State,
        previous: Compressor,
        generator: torch.Generator | None = None,
    ) -> State:
        """The rounds that another schedule counted; the inner state as the level has it."""
        if not isinstance(previous, Scheduled):
            return self.init(like)
        step = int(state[-1])
        known = previous.at(max(0, step - 1))
        before = self.at(max(0, step - 1))
        return (*before.inherit(like, state[:-1], known, generator), state[-1])

    def update(
        self, x: Float[Tensor, "..."], state: State, generator: torch.Generator | None = None
    ) -> tuple[Message, State]:
        """Encodes at the level of the round."""
        level, inner = self._now(x, state, generator)
        inside, inner = self._codec(level).update(x, inner, generator)
        message = Message(inside.shape, inside.dtype, (), ())
        if x.numel():
            layout = self.layout(inside.shape, inside.dtype)
            message = message._replace(layout=layout, parts=labelled(level, inside))
        return message, (*inner, state[-1] + 1)

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """An exchange of the tensors of every level: of one, unless some have missed rounds."""
        now = [
            self._now(x, state, context.generator(place, shared=True) if self.random else None)
            for place, (x, state) in enumerate(zip(tensors, states, strict=True))
        ]
        levels, inner = [level for level, _ in now], [one for _, one in now]
        found = yield from exchange_by_level(self._codec, levels, tensors, inner, context)
        following = zip(found.states, states, strict=True)
        return found._replace(states=[(*one, state[-1] + 1) for one, state in following])

    @property
    def _levels(self) -> list[int]:
        """Those that some round has."""
        warm = range(_FIRST, _FIRST + self.warm_up_epochs)
        return [_FINAL, *([_DENSE] if self.start_step else []), *warm]

    def _level(self, step: int) -> int:
        if step < self.start_step:
            return _DENSE
        epoch = (step - self.start_step) // self.steps_per_epoch
        return _FIRST + epoch if epoch < self.warm_up_epochs else _FINAL

    def _codec(self, level: int) -> Compressor:
        if level == _DENSE:
            return Uncompressed()
        if level == _FINAL:
            return self.inner
        last = _ratio(self.inner)
        assert last is not None  # checked above
        share = (level - _FIRST) / self.warm_up_epochs
        warm = self.first_ratio * (last / self.first_ratio) ** share
        return _with_ratio(self.inner, max(last, float(f"{warm:.3g}")))

    def _now(self, x: Tensor, state: State, generator: torch.Generator | None) -> tuple[int, State]:
        """The level of the round, and the inner state as it knows it."""
        step = int(state[-1])
        level, before = self._level(step), self._level(max(0, step - 1))
        if level == before:
            return level, state[:-1]
        codec = self._codec(level)
        return level, codec.inherit(x, state[:-1], self._codec(before), generator)


def _ratio(compressor: Compressor) -> float | None:
    """The ratio of what is innermost; None if it has none."""
    if any(one.name == "ratio" for one in fields(compressor)):
        return float(getattr(compressor, "ratio"))  # noqa: B009  (not of every compressor)
    return _ratio(compressor.inner) if isinstance(compressor, Wrapper) else None


def _with_ratio(compressor: Compressor, ratio: float) -> Compressor:
    if isinstance(compressor, Wrapper):
        return replace(compressor, inner=_with_ratio(compressor.inner, ratio))
    return replace(compressor, ratio=ratio)  # type: ignore[call-arg]
