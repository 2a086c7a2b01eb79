"""Automatic choice of atoms: those of least variance in as many bytes, for each tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from phalanx.communication.wire import require_finite_values
from phalanx.compression.atoms import (
    Atoms,
    Budget,
    Bytes,
    Entries,
    Prepared,
    SingularVectors,
    Waves,
)
from phalanx.compression.base import Shape
from phalanx.compression.levels import labelled
from phalanx.compression.message import Message, Part, fixed, parse
from phalanx.compression.sampling import Sampling
from phalanx.errors import require
from phalanx.floats import power_of_two, working


@dataclass(frozen=True)
class AutoBasis(Atoms):
    """The atoms, of several kinds, whose message has the least variance in the same bytes.

    A worker chooses anew for each of its tensors, by the variance of each kind at the budget in
    bytes, exactly: with sizes `l_i`, and `tau` such that the atoms kept with the probabilities
    `p_i = min(1, l_i / tau)` take that many bytes on average,

        E ||C(x) - x||^2 = sum of l_i^2 (1 / p_i - 1) = sum over l_i < tau of l_i (tau - l_i).

    The choice depends on the tensor alone, not on what is drawn, so that the message is as unbiased
    as each kind is. The messages say which it is: workers need not agree.
    Wire: a byte and four of a length, and the message of the kind.
    Cost: the analyses of all kinds, and that of the chosen one once more.
    Source: the choice between singular vectors and entries is that of Wang, Sievert, Charles, Liu,
    Wright, Papailiopoulos, "ATOMO: Communication-efficient Learning via Atomic Sparsification",
    NeurIPS 2018, section 4, by variances at equal bytes instead of norms.

    >>> import torch
    >>> from phalanx.compression import Atomo, AutoBasis
    >>> compressor, source = Atomo(AutoBasis(), bytes_share=0.3), torch.Generator().manual_seed(0)
    >>> low_rank = torch.outer(torch.arange(40.0), torch.arange(40.0))
    >>> spikes = torch.eye(40) + 0.01
    >>> [AutoBasis().kind(x, 1000.0) for x in (low_rank, spikes)]
    [SingularVectors(reshape='out-first'), Entries()]
    """

    needs_bytes: ClassVar[bool] = True

    kinds: tuple[Atoms, ...] = (SingularVectors(), Entries(), Waves())
    """What is chosen from; of equal ones the first."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.kinds) <= 256 or any(one.needs_bytes for one in self.kinds):
            raise ValueError(
                f"kinds must be 1 to 256 kinds of atoms, AutoBasis not among them, got {self.kinds}"
            )

    @property
    def per_tensor_shape(self) -> bool:
        """True if one of the kinds is about matrices."""
        return any(one.per_tensor_shape for one in self.kinds)

    def kind(self, x: Tensor, num_bytes: float) -> Atoms:
        """The kind of least variance for a tensor, in so many bytes on average."""
        return self.kinds[self._chosen(x, Bytes(num_bytes))]

    def prepare(self, x: Tensor, budget: Budget | Bytes) -> Prepared:
        """The chosen kind, with its number before the message.

        Raises:
            ValueError: if the budget is not in bytes.
        """
        if not isinstance(budget, Bytes):
            raise ValueError(f"budget must be in bytes to compare kinds of atoms, got {budget}")
        chosen = self._chosen(x, budget)
        kind = self.kinds[chosen]
        inside = kind.prepare(x, budget)

        def draw(sampling: Sampling, generator: torch.Generator | None) -> tuple[Tensor, ...]:
            layout = kind.layout(tuple(x.shape), x.dtype)
            parts = inside.draw(sampling, generator)
            return labelled(chosen, Message(tuple(x.shape), x.dtype, layout, parts))

        return Prepared(inside.spread, draw)

    def _chosen(self, x: Tensor, budget: Bytes) -> int:
        wide = x.to(working(x.dtype))
        scaled = wide / power_of_two(wide)  # squares of sizes neither over- nor underflow
        spreads = [one.prepare(scaled, budget).spread() for one in self.kinds]
        return spreads.index(min(spreads))

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Number of the kind, bytes of its message."""
        most = max(sum(part.most_bytes for part in one.layout(shape, dtype)) for one in self.kinds)
        return fixed(torch.uint8, 1), Part(torch.uint8, 0, most)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """As the kind says."""
        kind = self.kinds[int(parts[0])]
        inside = parse(parts[1], shape, dtype, kind.layout(shape, dtype))
        return kind.unpack(inside.parts, shape, dtype)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """There is such a kind, and the bytes are a message of it."""
        require(int(parts[0]) < len(self.kinds), "have a kind of atoms that there is")
        kind = self.kinds[int(parts[0])]
        inside = parse(parts[1], shape, dtype, kind.layout(shape, dtype)).parts
        require_finite_values(inside)
        kind.check(inside, shape, dtype)
