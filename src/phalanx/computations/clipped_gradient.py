"""Per-sample gradient clipping, as in DP-SGD."""

from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.computations.base import Broadcast, Computation, Computed, Samples, State
from phalanx.computations.objective import Objective
from phalanx.floats import euclidean_norm


@dataclass(frozen=True)
class ClippedGradient(Computation):
    """Mean of the samples' gradients, each clipped to a Euclidean norm.

    `1/b sum_i g_i min(1, C / ||g_i||)`: replacing one sample moves it by at most `2 C / b`. Alone
    this is not private; with `GaussianNoise` after it, it is the mechanism of DP-SGD.

    Gradients of single samples are computed `microbatch` at a time by one vectorised call, and one
    by one where `torch.func.vmap` cannot take the model, or its layers draw random numbers.

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

    microbatch: int = 32
    """Samples whose gradients are held at once."""

    def __post_init__(self) -> None:
        if not 0 < self.max_norm < float("inf"):
            raise ValueError(f"max_norm must be finite and above 0, got {self.max_norm}")
        if self.microbatch < 1:
            raise ValueError(f"microbatch must be at least 1, got {self.microbatch}")

    def compute(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        generator: torch.Generator | None,
    ) -> Computed:
        """The mean of the clipped gradients; see `Computation.compute`."""
        parameters, number = broadcast.parameters, len(samples.inputs)
        total = torch.zeros_like(parameters)
        losses = torch.zeros((), device=parameters.device)
        parts = zip(*(part.split(self.microbatch) for part in samples), strict=True)
        for inputs, targets in parts:
            gradients, loss = _sample_gradients(objective, parameters, inputs, targets)
            norms = gradients.norm(dim=1, keepdim=True)
            if not norms.isfinite().all():  # their squares may have overflowed
                norms = euclidean_norm(gradients, dim=1)[:, None]
            # A gradient that is not finite stays so: the message says what happened.
            scale = (self.max_norm / norms).clamp(max=1.0).where(norms.isfinite(), 1.0)
            total += (gradients * scale).sum(dim=0)
            losses = losses + loss.sum()
        return Computed(total / number, losses / number)


def _sample_gradients(
    objective: Objective, parameters: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient and loss of every sample, together where that can be done."""
    if not objective.is_random and not objective.prefers_loops:
        try:
            return objective.sample_gradients(parameters, inputs, targets)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
    alone = [
        objective.gradient(parameters, one.unsqueeze(0), target.unsqueeze(0))
        for one, target in zip(inputs, targets, strict=True)
    ]
    rows, losses = zip(*alone, strict=True)
    return torch.stack(rows), torch.stack(losses)
