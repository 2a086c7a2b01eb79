"""Mixed precision: a worker's forward and backward pass in 16 bits, parameters and sums in full."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.computations.base import Broadcast, Computation, Computed, Samples, State
from phalanx.computations.gradient import Gradient
from phalanx.computations.objective import Objective
from phalanx.parameters import ParameterLayout


@dataclass(frozen=True)
class MixedPrecision(Computation):
    """Mixed precision: another computation, with the model under `torch.autocast`.

    Matrix products and convolutions are computed in 16 bits, what needs range or precision in
    float32. Parameters, updates and messages keep their dtype. In float16 the loss is scaled so
    that small gradients do not vanish, see `Objective.in_mixed_precision`.

    Cost: half the memory traffic; on hardware with 16-bit units a half to a tenth of the time. On
    most CPUs it is no faster.
    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018.

    >>> import torch
    >>> from phalanx.computations import Broadcast, MixedPrecision, Objective, Samples
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
    >>> samples = Samples(torch.full((2, 1), 1.001), torch.zeros(2, 1))
    >>> half = MixedPrecision(dtype="bfloat16")
    >>> half.compute(objective, Broadcast(torch.tensor([3.0])), samples, (), None).update
    tensor([6.])
    """

    inner: Computation = Gradient()  # noqa: RUF009 - frozen
    """What is computed."""

    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """float16 has three more bits of precision, bfloat16 the range of float32."""

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float16"):
            raise ValueError(f"dtype must be 'bfloat16' or 'float16', got {self.dtype!r}")

    @property
    def vectorised(self) -> bool:
        """Whether the computation is."""
        return self.inner.vectorised

    @property
    def influence(self) -> float | None:
        """That of the computation."""
        return self.inner.influence

    def expecting(self, num_samples: int) -> Computation:
        """The computation that expects them, in mixed precision."""
        return replace(self, inner=self.inner.expecting(num_samples))

    def init(self, layout: ParameterLayout) -> State:
        """What the computation remembers."""
        return self.inner.init(layout)

    def compute(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        generator: torch.Generator | None,
    ) -> Computed:
        """The computation, of the model in mixed precision; see `Computation.compute`."""
        half = objective.in_mixed_precision(getattr(torch, self.dtype))
        return self.inner.compute(half, broadcast, samples, state, generator)

    def compute_many(
        self, objective: Objective, broadcast: Broadcast, samples: Samples
    ) -> tuple[Float[Tensor, "partitions dim"], Float[Tensor, " partitions"]]:
        """Several partitions at once; see `Computation.compute_many`."""
        half = objective.in_mixed_precision(getattr(torch, self.dtype))
        return self.inner.compute_many(half, broadcast, samples)
