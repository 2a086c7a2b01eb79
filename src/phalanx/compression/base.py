"""Compressors: a tensor to a message and back, and the mean over workers' messages."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.communication.collectives import (
    AllGather,
    AllReduce,
    Answer,
    Averaged,
    Exchange,
    ExchangeContext,
    Request,
    State,
)
from phalanx.communication.wire import (
    integers_from_bytes,
    integers_to_bytes,
    require_finite_values,
    to_bytes,
)
from phalanx.compression.message import Message, Part, num_values, parse
from phalanx.errors import WireError, require
from phalanx.floats import require_finite, within, working

Shape = tuple[int, ...]
MeanExchange = Generator[Request, Answer, list[Tensor]]
Collection = Generator[Request, Answer, list[list[Message] | WireError]]


@dataclass(frozen=True)
class Compressor(ABC):
    """Encodes a tensor in fewer bytes: hyper-parameters only, never state.

    A compressor implements `layout`, `pack` and `unpack`, and `check` where bytes may not be what
    `pack` writes. One that remembers something overrides `init` and `update` too; one whose workers
    can average at less cost than by exchanging messages overrides `exchange`.

    float16, bfloat16, float32 and float64 are compressed; arithmetic on halves is in float32, and
    what would leave the range of the dtype is held at its border. An empty tensor takes no bytes.
    """

    def __str__(self) -> str:
        """How it is made: the fields that are not at their default, and compressors inside."""
        shown = []
        for one in fields(self):
            value = getattr(self, one.name)
            default = one.default if one.default_factory is MISSING else one.default_factory()
            if isinstance(value, Compressor):
                shown.append(f"{one.name}={value}")
            elif value != default:
                shown.append(f"{one.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def unbiased(self) -> bool:
        """Whether the decoded tensor is the tensor in expectation."""
        return False

    @property
    def reducible(self) -> bool:
        """Whether the last parts of workers' messages may be added value by value.

        The other parts are then equal on all workers, given shared randomness.
        """
        return False

    @property
    def fixed_size(self) -> bool:
        """Whether the shape of a tensor alone decides how many bytes are sent."""
        return True

    @property
    def random(self) -> bool:
        """Whether encoding needs a generator."""
        return False

    @property
    def needs_shared_randomness(self) -> bool:
        """Whether the workers of a round must draw the same numbers."""
        return False

    @property
    def per_tensor_shape(self) -> bool:
        """Whether the shape of the tensor matters, not only its values."""
        return False

    def contraction(self, dim: int) -> float | None:
        """The delta in `E ||C(x) - x||^2 <= (1 - delta) ||x||^2` for all x of `dim` values.

        None if there is no such bound above 0. Error feedback converges where there is one.
        """
        return None

    def variance_bound(self, dim: int) -> float | None:
        """The omega in `E ||C(x) - x||^2 <= omega ||x||^2`, for compressors without bias."""
        return None

    @abstractmethod
    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """What both sides know of the parts of a message about a tensor that is not empty."""

    @abstractmethod
    def pack(
        self, x: Float[Tensor, "..."], generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """The parts of the message: `x` is finite, contiguous and not empty."""

    @abstractmethod
    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The decoded values, of any shape and floating dtype that the caller brings into form."""

    def check(  # noqa: B027  (what passes as it is needs no more)
        self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype
    ) -> None:
        """Raises a `WireError` unless `unpack` can decode the parts and `pack` might write them.

        Dtypes and lengths are right already, and floating-point values finite.
        """

    def encode(self, x: Float[Tensor, "..."], generator: torch.Generator | None = None) -> Message:
        """The tensor as a message.

        Args:
            x: of any shape and strides; not changed.
            generator: randomness, for compressors that are random.

        Raises:
            NotFiniteError: if there is NaN or infinity in it.
            ValueError: if a random compressor is given no generator.
        """
        if self.random and generator is None:
            raise ValueError(f"generator must be given: {type(self).__name__} is random")
        require_finite([x])
        shape, x = tuple(x.shape), x.detach().contiguous()
        if not x.numel():
            return Message(shape, x.dtype, (), ())
        return Message(shape, x.dtype, self.layout(shape, x.dtype), self.pack(x, generator))

    def decode(self, message: Message) -> Float[Tensor, "..."]:
        """The tensor that a message of this compressor stands for: its shape, its dtype."""
        if not num_values(message.shape):
            return torch.zeros(message.shape, dtype=message.dtype)
        values = self.unpack(message.parts, message.shape, message.dtype)
        return within(values, message.dtype).reshape(message.shape)

    def from_bytes(self, data: bytes | Tensor, shape: Shape, dtype: torch.dtype) -> Message:
        """The message that a peer sent as these bytes (or as a uint8 tensor).

        Bytes that pass are those of a message that decodes to finite values. Whether they are those
        that the peer meant is for the transport to ensure.

        Raises:
            WireError: if they are not a message of this compressor about a tensor of this shape.
        """
        layout = self.layout(shape, dtype) if num_values(shape) else ()
        message = parse(data, shape, dtype, layout)
        require_finite_values(message.parts)
        if layout:
            self.check(message.parts, shape, dtype)
        return message

    def init(self, like: Float[Tensor, "..."]) -> State:
        """What a worker remembers of a tensor like this before the first round."""
        return ()

    def update(
        self, x: Float[Tensor, "..."], state: State, generator: torch.Generator | None = None
    ) -> tuple[Message, State]:
        """Encodes one tensor given the state; also the next state. See `encode`."""
        return self.encode(x, generator), state

    def inherit(
        self,
        like: Float[Tensor, "..."],
        state: State,
        previous: "Compressor",
        generator: torch.Generator | None = None,
    ) -> State:
        """The state to go on with where another compressor left off; what of it fits is kept.

        Args:
            like: the tensor that is remembered, or one like it.
            state: that of `previous`.
            previous: which compressor was used until now.
            generator: randomness, the same on all workers, for what has to be drawn in addition.
        """
        return state if previous == self else self.init(like)

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """A worker's part of a round: its tensors in, the mean over the workers out.

        All workers run this in step, asking for the same collectives in the same order.
        """
        shared = self.needs_shared_randomness
        found = [
            self.update(x, state, context.generator(place, shared=shared) if self.random else None)
            for place, (x, state) in enumerate(zip(tensors, states, strict=True))
        ]
        messages = [message for message, _ in found]
        means = self._reduce if self.reducible and _same_dtype(messages) else self._gather
        mean = yield from means(messages, context.num_workers)
        sent = [self.decode(message) for message in messages]
        return Averaged(mean, sent, [state for _, state in found])

    def _reduce(self, messages: list[Message], num_workers: int) -> MeanExchange:
        """Adds the last parts up in one collective, divided before: halves do not overflow."""
        last = [message.parts[-1] for message in messages if message.parts]
        if not last:
            return [self.decode(message) for message in messages]
        total = yield AllReduce(torch.cat(last) / num_workers)
        pieces = iter(cast(Tensor, total).split([part.numel() for part in last]))
        means = [
            message._replace(parts=(*message.parts[:-1], next(pieces)))
            if message.parts
            else message
            for message in messages
        ]
        return [self.decode(message) for message in means]

    def _gather(self, messages: list[Message], num_workers: int) -> MeanExchange:
        """Sends all messages to all workers, each of which decodes and averages."""
        device = device_of(messages)
        means = [
            torch.zeros(one.shape, dtype=working(one.dtype), device=device) for one in messages
        ]
        for theirs in (yield from self.collect(messages)):
            if isinstance(theirs, WireError):
                raise theirs
            for mean, message in zip(means, theirs, strict=True):
                mean += self.decode(message).to(mean) / num_workers
        return [within(mean, one.dtype) for mean, one in zip(means, messages, strict=True)]

    def collect(self, messages: list[Message]) -> Collection:
        """Sends all messages to all workers: those of every worker, in order.

        In place of messages that cannot be read stands the error that says why.
        """
        tensors = [(one.shape, one.dtype) for one in messages]
        most = sum(8 + message.most_bytes for message in messages)
        rows = yield AllGather(frame(messages, self.fixed_size), self.fixed_size, most)
        found: list[list[Message] | WireError] = []
        for worker, row in enumerate(rows):
            try:
                found.append(self.unframe(row, tensors))
            except WireError as error:
                found.append(WireError(f"worker {worker}: {error}"))
        return found

    def unframe(self, data: Tensor, tensors: Sequence[tuple[Shape, torch.dtype]]) -> list[Message]:
        """The messages that `frame` put together; `from_bytes` for several tensors.

        Args:
            data: uint8, one-dimensional: what a peer sent.
            tensors: shape and dtype of the tensors that the messages are about, in order.

        Raises:
            WireError: if the bytes are not a message of this compressor about each of them.
        """
        if self.fixed_size:
            lengths = [self.num_bytes(*one) for one in tensors]
        else:
            require(data.numel() >= 8 * len(tensors), "state the length of every tensor's message")
            lengths = integers_from_bytes(data[: 8 * len(tensors)], "<i8")
            data = data[8 * len(tensors) :]
        require(min(lengths, default=0) >= 0, "have no negative length")
        require(data.numel() == sum(lengths), "be as long as it states")
        return [
            self.from_bytes(piece, *one)
            for piece, one in zip(data.split(lengths), tensors, strict=True)
        ]

    def num_bytes(self, shape: Shape, dtype: torch.dtype) -> int:
        """Bytes of a message about a tensor of this shape, from a compressor of `fixed_size`."""
        layout = self.layout(shape, dtype) if num_values(shape) else ()
        return sum(part.dtype.itemsize * part.fewest for part in layout)


def frame(messages: list[Message], fixed_size: bool) -> Tensor:
    """Messages one after the other; before them their lengths, if the receiver cannot know them.

    Args:
        messages: of one compressor, about several tensors.
        fixed_size: whether that compressor is of `fixed_size`.

    Returns:
        uint8, one-dimensional; `Compressor.unframe` reads it.
    """
    device = device_of(messages)
    pieces = [message.to_tensor().to(device) for message in messages]
    if not fixed_size:
        lengths = integers_to_bytes([piece.numel() for piece in pieces], "<i8")
        pieces.insert(0, lengths.to(device))
    return to_bytes(pieces)


def device_of(messages: Sequence[Message]) -> torch.device:
    """Where the messages are; those about empty tensors are nowhere."""
    parts = (part for message in messages for part in message.parts)
    return next((part.device for part in parts), torch.device("cpu"))


def _same_dtype(messages: list[Message]) -> bool:
    return len({message.dtype for message in messages}) == 1
