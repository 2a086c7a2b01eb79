"""What workers' messages look like on the way, if they are compressed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from phalanx.communication import ExchangeContext
from phalanx.compression import Compressor, frame
from phalanx.errors import NotFiniteError, WireError

States = tuple[tuple[Tensor, ...], ...]
"""What a worker's compressor remembers, by tensor of the message; empty before the first one."""


@dataclass(frozen=True)
class MessageCodec:
    """Turns a worker's message into bytes and back: each tensor of the model is compressed alone.

    Bytes are untrusted. Those that are none of the compressor's raise a `WireError`, before
    anything is allocated; those that pass decode to finite values.
    """

    compressor: Compressor
    """How each tensor is encoded."""

    seed: int
    """Of the run: randomness follows from it, the round, the tensor and the worker."""

    num_workers: int
    """Workers of the run."""

    names: tuple[str, ...]
    """Of the tensors, in the order in which they stand in a message."""

    shapes: tuple[tuple[int, ...], ...]
    """Of the tensors."""

    dtype: torch.dtype
    """Of all of them."""

    def encode(
        self, message: Float[Tensor, " width"], states: States, step: int, worker: int
    ) -> tuple[UInt8[Tensor, " bytes"], States]:
        """A message as bytes, and what is remembered of it.

        Args:
            message: of a worker; not changed.
            states: what the worker's compressor remembers; empty before the first round.
            step: the round.
            worker: its id.

        Raises:
            NotFiniteError: if there is NaN or infinity in the message.
        """
        compressor, tensors = self.compressor, self._cut(message)
        states = states or tuple(compressor.init(x) for x in tensors)
        source = ExchangeContext(self.seed, step, worker, self.num_workers, self.names)
        shared = compressor.needs_shared_randomness
        found = [
            compressor.update(
                x, state, source.generator(place, shared=shared) if compressor.random else None
            )
            for place, (x, state) in enumerate(zip(tensors, states, strict=True))
        ]
        data = frame([encoded for encoded, _ in found], compressor.fixed_size)
        return data, tuple(state for _, state in found)

    def forge(self, message: Tensor, step: int, worker: int) -> UInt8[Tensor, " bytes"]:
        """What a bad worker of a drill sends to have this arrive; it remembers nothing.

        What cannot be encoded, for its shape, its type or NaN in it, is sent as it is.
        """
        if message.dtype == self.dtype and message.shape == (self.width,):
            try:
                return self.encode(message, (), step, worker)[0]
            except NotFiniteError:
                pass
        return message.detach().reshape(-1).contiguous().view(torch.uint8)

    def decode(self, data: Tensor) -> Float[Tensor, " width"]:
        """The message that these bytes stand for.

        Raises:
            WireError: if they are no message.
        """
        if data.dtype != torch.uint8 or data.ndim != 1:
            raise WireError(f"message must be bytes, got {data.dtype} of {tuple(data.shape)}")
        tensors = [(shape, self.dtype) for shape in self.shapes]
        messages = self.compressor.unframe(data, tensors)
        return torch.cat([self.compressor.decode(one).reshape(-1) for one in messages])

    @property
    def width(self) -> int:
        """Numbers in a message."""
        return sum(self._sizes)

    @property
    def remembers(self) -> bool:
        """Whether the compressor remembers anything of such messages."""
        like = [torch.empty(shape, dtype=self.dtype, device="meta") for shape in self.shapes]
        return any(self.compressor.init(x) for x in like)

    @property
    def _sizes(self) -> list[int]:
        return [torch.Size(shape).numel() for shape in self.shapes]

    def _cut(self, message: Tensor) -> Sequence[Tensor]:
        parts = message.split(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
