"""Compressed messages: each tensor of the model is encoded alone, and sent as bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from phalanx.coding import Code
from phalanx.communication import ExchangeContext
from phalanx.compression import Compressor, ErrorFeedback, TopK, frame
from phalanx.errors import NotFiniteError, WireError
from phalanx.parameters import ParameterLayout
from phalanx.transforms.base import MessageContext, MessageTransform, State


@dataclass(frozen=True)
class Compressed(MessageTransform):
    """Messages as a compressor's bytes: the last member of a chain.

    Each tensor of the model is encoded alone, and what an `ErrorFeedback` left out is kept by the
    worker. The server decodes, then the code or rule does. Codes that compare replicas refuse
    compressors that would make honest workers differ; codes that find lies by what does not fit
    refuse all.

    Bytes are untrusted. Those that are none of the compressor's are refused before anything is
    allocated; those that pass decode to finite values.

    Source: that of the compressor.

    >>> import torch
    >>> from phalanx.compression import TopK
    >>> from phalanx.parameters import ParameterLayout
    >>> from phalanx.transforms import Compressed, MessageContext
    >>> layout = ParameterLayout(("w",), ((4,),), torch.float32)
    >>> context, largest = MessageContext(layout, 0, 0, 0, 1), Compressed(TopK(0.25))
    >>> sent, _ = largest.update(torch.tensor([1.0, -8.0, 2.0, 3.0]), (), context)
    >>> largest.decode(sent, layout)
    tensor([ 0., -8.,  0.,  0.])
    """

    encodes: ClassVar[bool] = True

    compressor: Compressor = ErrorFeedback(TopK())  # noqa: RUF009 - frozen
    """How each tensor is encoded."""

    def update(
        self, message: Float[Tensor, " width"], state: State, context: MessageContext
    ) -> tuple[UInt8[Tensor, " bytes"], State]:
        """The bytes of all tensors, framed; see `MessageTransform.update`.

        Raises:
            NotFiniteError: if there is NaN or infinity in the message.
        """
        compressor = self.compressor
        tensors = list(context.layout.unflatten(message).values())
        source = ExchangeContext(
            context.seed, context.step, context.worker, context.num_workers, context.layout.names
        )
        shared = compressor.needs_shared_randomness
        found = [
            compressor.update(
                x, own, source.generator(place, shared=shared) if compressor.random else None
            )
            for place, (x, own) in enumerate(
                zip(tensors, self._states(state, tensors), strict=True)
            )
        ]
        data = frame([encoded for encoded, _ in found], compressor.fixed_size)
        return data, _joined([own for _, own in found])

    def decode(self, data: Tensor, layout: ParameterLayout) -> Float[Tensor, " width"]:
        """The message that these bytes stand for.

        Raises:
            WireError: if they are no message.
        """
        if data.dtype != torch.uint8 or data.ndim != 1:
            raise WireError(f"message must be bytes, got {data.dtype} of {tuple(data.shape)}")
        tensors = [(shape, layout.dtype) for shape in layout.shapes]
        messages = self.compressor.unframe(data, tensors)
        return torch.cat([self.compressor.decode(one).reshape(-1) for one in messages])

    def forge(self, message: Tensor, context: MessageContext) -> UInt8[Tensor, " bytes"]:
        """What has this arrive; what cannot be encoded, for shape, type or NaN, is sent as is."""
        if message.dtype == context.layout.dtype and message.shape == (context.layout.dim,):
            try:
                return self.update(message, (), context)[0]
            except NotFiniteError:
                pass
        return message.detach().reshape(-1).contiguous().view(torch.uint8)

    def conflict(self, code: Code, layout: ParameterLayout) -> str | None:
        """Why honest messages would differ where the code compares them, if so."""
        compressor = self.compressor
        if code.compressible == "freely":
            return None
        if code.compressible == "never":
            return (
                f"compressor must be None under {type(code).__name__}, which takes for a lie what "
                f"compression leaves out of an honest message, got {compressor}"
            )
        if compressor.random and not compressor.needs_shared_randomness:
            why = "draws other numbers on every worker"
        elif self._remembers(layout):
            why = "remembers rounds that a replica may have missed"
        else:
            return None
        return (
            f"compressor must send the same for equal messages under {type(code).__name__}, which "
            f"compares replicas, got {compressor}, which {why}"
        )

    def _remembers(self, layout: ParameterLayout) -> bool:
        """Whether the compressor remembers anything of such messages."""
        like = [torch.empty(shape, dtype=layout.dtype, device="meta") for shape in layout.shapes]
        return any(self.compressor.init(x) for x in like)

    def _states(self, state: State, tensors: Sequence[Tensor]) -> list[State]:
        """What is remembered of each tensor; at first, what the compressor begins with."""
        if not state:
            return [self.compressor.init(x) for x in tensors]
        lengths, *parts = state
        ends = lengths.cumsum(0).tolist()
        return [tuple(parts[end - n : end]) for end, n in zip(ends, lengths.tolist(), strict=True)]


def _joined(states: Sequence[State]) -> State:
    """The states of all tensors as one, their lengths first; empty if nothing is remembered."""
    parts = [part for one in states for part in one]
    return (torch.tensor([len(one) for one in states]), *parts) if parts else ()
