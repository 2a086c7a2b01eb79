"""Per-sample gradient clipping, as in DP-SGD."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.computations.per_sample import PerSampleGradient
from phalanx.floats import euclidean_norm


@dataclass(frozen=True)
class ClippedGradient(PerSampleGradient):
    """Mean of the samples' gradients, each clipped to a Euclidean norm.

    `1/b sum_i g_i min(1, C / ||g_i||)`: replacing one sample moves it by at most `2 C / b`. Alone
    this is not private; with `PoissonSampling` and noise it is DP-SGD: see `DifferentialPrivacy`.

    Guarantee: the norm of the update is at most `max_norm`.
    Cost: memory for `microbatch` gradients; about as many operations as a backward pass.
    Source: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, "Deep Learning with
    Differential Privacy", CCS 2016 (Algorithm 1).

    >>> import torch
    >>> from phalanx.computations import Broadcast, ClippedGradient, Objective, Samples
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
    >>> samples = Samples(torch.tensor([[9.0], [0.1]]), torch.zeros(2, 1))
    >>> clipped = ClippedGradient(max_norm=1.0)
    >>> clipped.compute(objective, Broadcast(torch.tensor([1.0])), samples, (), None).update
    tensor([0.5100])
    """

    max_norm: float = 1.0
    """Euclidean norm to which a sample's gradient is cut down (C in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.max_norm < float("inf"):
            raise ValueError(f"max_norm must be finite and above 0, got {self.max_norm}")

    @property
    def influence(self) -> float:
        """`max_norm`."""
        return self.max_norm

    def bounded(
        self, gradients: Float[Tensor, "samples dim"], generator: torch.Generator | None
    ) -> Float[Tensor, " dim"]:
        """The sum of the clipped gradients."""
        norms = gradients.norm(dim=1, keepdim=True)
        if not norms.isfinite().all():  # their squares may have overflowed
            norms = euclidean_norm(gradients, dim=1)[:, None]
        # A gradient that is not finite stays so: the message says what happened.
        scale = (self.max_norm / norms).clamp(max=1.0).where(norms.isfinite(), 1.0)
        if norms.dtype == gradients.dtype and norms.isfinite().all():
            return torch.mv(gradients.T, scale[:, 0])  # one pass, where no zero meets an infinity
        return torch.mul(gradients, scale).sum(dim=0).to(gradients.dtype)
