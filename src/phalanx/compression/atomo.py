"""ATOMO: unbiased atomic sparsification of least variance."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_above, require_share
from phalanx.compression.atoms import Atoms, Budget, Bytes, SingularVectors
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part
from phalanx.compression.sampling import Sampling


@dataclass(frozen=True)
class Atomo(Compressor):
    """Keeps atoms at random, large ones more often, each divided by its probability.

    Unbiased. With a budget of `s` atoms the probabilities are those of the least variance:
    `p = min(1, size / tau)`, with a `tau` for which they add up to `s`. The variance is then
    `sum of size^2 (1 / p - 1)`, or `sum of size (tau - size)` over the sizes below `tau`.
    With `Entries` and a budget of "l2" it is QSGD with one level, with "max" it is TernGrad: the
    same values from the same draws. With `AutoBasis` each tensor has the atoms that suit it best.
    Wire: that of the atoms; how many are kept varies.
    Cost: the analysis. Singular vectors: one Gram matrix of the smaller side and its eigenvectors.
    Source: Wang, Sievert, Charles, Liu, Wright, Papailiopoulos, "ATOMO: Communication-efficient
    Learning via Atomic Sparsification", NeurIPS 2018, sections 3 and 4.

    >>> import torch
    >>> x = torch.outer(torch.arange(6.0), torch.arange(8.0))
    >>> compressor = Atomo(budget=2.0)
    >>> message = compressor.encode(x, torch.Generator().manual_seed(0))
    >>> torch.allclose(compressor.decode(message), x, atol=1e-4)  # a matrix of rank one
    True
    """

    atoms: Atoms = field(default_factory=SingularVectors)
    """What the tensor is made of."""
    budget: Budget = 3.0
    """Atoms kept, on average (s); or a norm of the coefficients, whose ratio to their sum it is."""
    sampling: Sampling = "systematic"
    """Whether as many atoms are kept as the budget says, but for rounding; or each by itself."""
    bytes_budget: float | None = None
    """Bytes that the atoms of a tensor take, on average, instead of `budget`, where it is given.
    Lengths of the parts come on top, up to 33 bytes a tensor."""
    bytes_share: float | None = None
    """Share of a tensor's own bytes that its atoms take, on average, instead of either: so that
    atoms, and rivals, are compared at equal bytes."""

    def __post_init__(self) -> None:
        if isinstance(self.budget, str):
            if self.budget not in ("l2", "max"):
                raise ValueError(f"budget must be a number, l2 or max, got {self.budget}")
        elif not self.budget > 0:
            raise ValueError(f"budget must be above 0, got {self.budget}")
        if self.sampling not in ("systematic", "bernoulli"):
            raise ValueError(f"sampling must be systematic or bernoulli, got {self.sampling}")
        if self.bytes_budget is not None:
            require_above(0, bytes_budget=self.bytes_budget)
        if self.bytes_share is not None:
            require_share(bytes_share=self.bytes_share)
        if self.bytes_budget is not None and self.bytes_share is not None:
            raise ValueError(
                f"bytes_share must be None where bytes_budget is given, got {self.bytes_share}"
            )
        if self.bytes_budget is not None or self.bytes_share is not None:
            self.atoms.prepare(torch.ones(1), Bytes(4.0))  # refused if atoms have no price
        elif self.atoms.needs_bytes:
            raise ValueError(
                "bytes_share (or bytes_budget) must be given: "
                f"{type(self.atoms).__name__} compares atoms at equal bytes"
            )

    @property
    def random(self) -> bool:
        """True."""
        return True

    @property
    def unbiased(self) -> bool:
        """True."""
        return True

    @property
    def fixed_size(self) -> bool:
        """False: how many atoms are kept is drawn."""
        return False

    @property
    def per_tensor_shape(self) -> bool:
        """True where atoms are matrices."""
        return self.atoms.per_tensor_shape

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """That of the atoms."""
        return self.atoms.layout(shape, dtype)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Analyses, draws, and keeps."""
        return self.atoms.sparsify(x, self._budget(x), self.sampling, generator)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The sum of the atoms that were sent."""
        return self.atoms.unpack(parts, shape, dtype)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """As the atoms say."""
        self.atoms.check(parts, shape, dtype)

    def variance(self, x: Float[Tensor, "..."]) -> float:
        """`E ||C(x) - x||^2` of this tensor, exactly."""
        return self.atoms.variance(x, self._budget(x))

    def _budget(self, x: Float[Tensor, "..."]) -> Budget | Bytes:
        if self.bytes_share is not None:
            return Bytes(self.bytes_share * x.numel() * x.element_size())
        return self.budget if self.bytes_budget is None else Bytes(self.bytes_budget)
