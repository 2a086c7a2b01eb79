"""Error feedback for biased compressors."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.communication.collectives import Exchange, ExchangeContext, State
from phalanx.compression.message import Message
from phalanx.compression.wrapper import Wrapper
from phalanx.floats import within, working


@dataclass(frozen=True)
class ErrorFeedback(Wrapper):
    """Adds what the inner compressor left out of earlier tensors to the next one.

    Makes biased compressors converge: at any time, what was sent and what is in memory add up to
    all tensors so far. Compressors without bias are refused: what they scale up piles up in memory.
    Momentum and weight decay belong after the mean.
    Wire: that of the inner compressor. Memory: one tensor's size.
    Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018; Karimireddy,
    Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
    ICML 2019.

    >>> import torch
    >>> from phalanx.compression import TopK
    >>> compressor, x = ErrorFeedback(TopK(ratio=0.5)), torch.tensor([3.0, 2.0])
    >>> state = compressor.init(x)
    >>> first, state = compressor.update(x, state)
    >>> second, state = compressor.update(x, state)
    >>> compressor.decode(first), compressor.decode(second), state
    (tensor([3., 0.]), tensor([0., 4.]), (tensor([3., 0.]),))
    """

    num_memories: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.inner.unbiased:
            raise ValueError(
                f"inner must be a biased compressor (with rescale=False, say), got {self.inner}"
            )

    def init(self, like: Float[Tensor, "..."]) -> State:
        """An empty memory in the dtype of arithmetic, before the inner one's state."""
        empty = torch.zeros_like(like, dtype=working(like.dtype))
        return (empty, *self.inner.init(like))

    def update(
        self, x: Float[Tensor, "..."], state: State, generator: torch.Generator | None = None
    ) -> tuple[Message, State]:
        """Encodes the tensor with the memory added; what is left is the next memory."""
        wanted = x.detach() + state[0]
        message, inner = self.inner.update(within(wanted, x.dtype), state[1:], generator)
        return message, (wanted - self.inner.decode(message), *inner)

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """The inner exchange of tensors with their memories added."""
        pairs = zip(tensors, states, strict=True)
        if context.out is None:
            wanted = [state[0] + x for x, state in pairs]
        else:
            wanted = [state[0].add_(x) for x, state in pairs]
        given = [within(one, x.dtype) for one, x in zip(wanted, tensors, strict=True)]
        inner = yield from self.inner.exchange(given, [state[1:] for state in states], context)
        lefts = [
            one - sent if context.out is None else one.sub_(sent)
            for one, sent in zip(wanted, inner.sent, strict=True)
        ]
        following = zip(lefts, inner.states, strict=True)
        return inner._replace(states=[(left, *state) for left, state in following])
