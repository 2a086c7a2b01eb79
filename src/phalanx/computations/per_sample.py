"""Sums of gradients of single samples, each of which is cut to a bounded influence."""

from abc import abstractmethod
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.computations.base import Broadcast, Computation, Computed, Samples, State
from phalanx.computations.objective import Objective


@dataclass(frozen=True)
class PerSampleGradient(Computation):
    """Mean of the samples' gradients after each was bounded by itself.

    Gradients of single samples are computed `microbatch` at a time by one vectorised call, and one
    by one where `torch.func.vmap` cannot take the model, or its layers draw random numbers.

    With `expected_samples` the sum is divided by that number instead of the samples', which differ
    from round to round under Poisson sampling, and a gradient that is not finite counts as zero: so
    one sample moves the update by at most `influence / expected_samples`, whatever it holds.

    Cost: memory for `microbatch` gradients; about as many operations as a backward pass.
    """

    microbatch: int = field(default=32, kw_only=True)
    """Samples whose gradients are held at once."""

    expected_samples: int | None = field(default=None, kw_only=True)
    """By how many the sum is divided; by as many as there are, if None. Private training fills it
    in."""

    def __post_init__(self) -> None:
        require_at_least(1, microbatch=self.microbatch, expected_samples=self.expected_samples)

    @abstractmethod
    def bounded(
        self, gradients: Float[Tensor, "samples dim"], generator: torch.Generator | None
    ) -> Float[Tensor, " dim"]:
        """The sum of the gradients after each was bounded."""

    def expecting(self, num_samples: int) -> Computation:
        """The same, divided by that number of samples."""
        return replace(self, expected_samples=num_samples)

    def compute(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        generator: torch.Generator | None,
    ) -> Computed:
        """The mean of the bounded gradients; see `Computation.compute`."""
        parameters, number = broadcast.parameters, len(samples.inputs)
        total = torch.zeros_like(parameters)
        losses = torch.zeros((), device=parameters.device)
        parts = zip(*(part.split(self.microbatch) for part in samples), strict=True)
        for inputs, targets in parts if number else ():
            gradients, loss = sample_gradients(objective, parameters, inputs, targets)
            # The sum tells in one pass; it may also overflow where no number is too large.
            if self.expected_samples is not None and not gradients.sum().isfinite():
                finite = gradients.isfinite().all(dim=1, keepdim=True)
                gradients = gradients.where(finite, torch.zeros_like(gradients))
            total += self.bounded(gradients, generator)
            losses = losses + loss.sum()
        return Computed(total / (self.expected_samples or number), losses / number)


def sample_gradients(
    objective: Objective, parameters: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient and loss of every sample, together where that can be done."""
    if not objective.is_random:  # loops win for batches, not for single samples
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
