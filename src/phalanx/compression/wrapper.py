"""Base of compressors around another compressor."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.communication.collectives import State
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part
from phalanx.compression.top_k import TopK


@dataclass(frozen=True)
class Wrapper(Compressor):
    """Messages are those of the inner compressor; what goes into them is up to the outer one."""

    num_memories: ClassVar[int] = 0
    """How many tensors of a state are the outer one's own, once there are any; they come first."""

    inner: Compressor = field(default_factory=TopK)
    """The compressor of what is sent."""

    @property
    def unbiased(self) -> bool:
        """As the inner one."""
        return self.inner.unbiased

    @property
    def reducible(self) -> bool:
        """As the inner one."""
        return self.inner.reducible

    @property
    def fixed_size(self) -> bool:
        """As the inner one."""
        return self.inner.fixed_size

    @property
    def random(self) -> bool:
        """As the inner one."""
        return self.inner.random

    @property
    def needs_shared_randomness(self) -> bool:
        """As the inner one."""
        return self.inner.needs_shared_randomness

    @property
    def per_tensor_shape(self) -> bool:
        """As the inner one."""
        return self.inner.per_tensor_shape

    def contraction(self, dim: int) -> float | None:
        """That of the inner one, which is what a first message obeys."""
        return self.inner.contraction(dim)

    def variance_bound(self, dim: int) -> float | None:
        """That of the inner one, likewise."""
        return self.inner.variance_bound(dim)

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """As the inner one."""
        return self.inner.layout(shape, dtype)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """As the inner one, of which nothing is remembered yet."""
        return self.inner.pack(x, generator)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """As the inner one."""
        return self.inner.unpack(parts, shape, dtype)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """As the inner one."""
        self.inner.check(parts, shape, dtype)

    def inherit(
        self,
        like: Float[Tensor, "..."],
        state: State,
        previous: Compressor,
        generator: torch.Generator | None = None,
    ) -> State:
        """What another wrapper of this kind remembered; the inner state as the inner one has it."""
        if not isinstance(previous, Wrapper) or type(previous) is not type(self):
            return self.init(like)
        own, inner = state[: self.num_memories], state[self.num_memories :]
        return (*own, *self.inner.inherit(like, inner, previous.inner, generator))
