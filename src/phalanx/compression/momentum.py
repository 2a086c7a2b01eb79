"""Momentum correction: each worker's momentum before compression."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_above, require_below_one
from phalanx.communication.collectives import Exchange, ExchangeContext, State
from phalanx.compression.message import Message
from phalanx.compression.wrapper import Wrapper
from phalanx.floats import euclidean_norm, within, working


@dataclass(frozen=True)
class MomentumCorrection(Wrapper):
    """Remembers, as error feedback does, what was not sent: not of gradients, but of momenta.

    A value that is sent once in a hundred rounds moves the weights by what momentum would have
    moved them by in all of these, and not by the sum of a hundred gradients, to which momentum is
    applied only afterwards. For compressors that keep some values. The optimizer has no momentum of
    its own, then.
    Wire: that of the inner compressor. Memory: two tensors' size.
    Source: Lin, Han, Mao, Wang, Dally, "Deep Gradient Compression: Reducing the Communication
    Bandwidth for Distributed Training", ICLR 2018, sections 3.1 to 3.3; the growing
    sparsity of its first epochs is that of `Scheduled`.

    >>> import torch
    >>> from phalanx.compression import TopK
    >>> compressor, x = MomentumCorrection(TopK(ratio=0.5), momentum=0.5), torch.tensor([3.0, 2.0])
    >>> state = compressor.init(x)
    >>> first, state = compressor.update(x, state)
    >>> second, state = compressor.update(x, state)
    >>> compressor.decode(first), compressor.decode(second)
    (tensor([3., 0.]), tensor([0., 5.]))
    """

    num_memories: ClassVar[int] = 2

    momentum: float = 0.9
    """Share of the momentum that is kept in a round (m)."""
    masking: bool = True
    """Whether a value that is sent starts again without momentum, as published: otherwise old
    gradients go on moving it in a direction that is stale."""
    clip: float | None = None
    """Norm that the mean gradient, all tensors of a round as one, may have: each worker cuts its
    own down to that over the root of their number, before it joins the momentum."""

    def __post_init__(self) -> None:
        require_momentum(self.momentum)
        require_above(0, clip=self.clip)
        if self.inner.unbiased:
            raise ValueError(
                f"inner must be a biased compressor (with rescale=False, say), got {self.inner}"
            )

    def init(self, like: Float[Tensor, "..."]) -> State:
        """No momentum, nothing left to send, and the inner one's state."""
        empty = torch.zeros_like(like, dtype=working(like.dtype))
        return (empty, empty.clone(), *self.inner.init(like))

    def update(
        self, x: Float[Tensor, "..."], state: State, generator: torch.Generator | None = None
    ) -> tuple[Message, State]:
        """Encodes what is left to send; what the message lacks is left again.

        The tensor is cut down by its own norm, as if there were no other and no other worker.
        """
        velocity, wanted = self._moved(self._clipped([x], 1)[0], state)
        message, inner = self.inner.update(within(wanted, x.dtype), state[2:], generator)
        return message, (*self._left(velocity, wanted, self.inner.decode(message)), *inner)

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """The inner exchange of what is left to send."""
        tensors = self._clipped(tensors, context.num_workers)
        moved = [self._moved(x, state) for x, state in zip(tensors, states, strict=True)]
        given = [within(wanted, x.dtype) for (_, wanted), x in zip(moved, tensors, strict=True)]
        found = yield from self.inner.exchange(given, [state[2:] for state in states], context)
        following = zip(moved, found.sent, found.states, strict=True)
        return found._replace(
            states=[(*self._left(*pair, sent), *inner) for pair, sent, inner in following]
        )

    def _clipped(self, tensors: list[Tensor], num_workers: int) -> list[Tensor]:
        """The tensors, all smaller if their common norm is too large for this many workers."""
        if self.clip is None:
            return tensors
        norms = [float(euclidean_norm(x)) for x in tensors]
        largest = self.clip / math.sqrt(num_workers)
        norm = math.hypot(*norms)
        return [x * (largest / norm) for x in tensors] if norm > largest else tensors

    def _moved(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The momentum with this tensor in it, and all that is left to send."""
        velocity = self.momentum * state[0] + x.detach()
        return velocity, state[1] + velocity

    def _left(self, velocity: Tensor, wanted: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
        if self.masking:
            velocity = velocity.masked_fill(sent != 0, 0.0)
        return velocity, wanted - sent


def require_momentum(momentum: float) -> None:
    """Raises a `ValueError` unless it is a share below 1."""
    require_below_one(momentum=momentum)
