"""Noise on the aggregate: a server step that blurs the decoded update."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from phalanx.checks import require_finite_at_least
from phalanx.randomness import generator
from phalanx.training.server_step import StepAround


@dataclass(frozen=True)
class NoisyStep(StepAround):
    """Gaussian noise on the decoded update, before another step: `u + N(0, std^2 I)`.

    Behind norm clipping this is what the literature calls weak differential privacy. It is no
    guarantee of privacy: its noise is far below what one takes, and nothing is accounted for. It
    blurs what little a hidden attacker sends. For a guarantee see `ClippedGradient` and
    `GaussianNoise`.

    Cost: one pass over the update.
    Source: Sun, Kairouz, Suresh and McMahan, "Can You Really Backdoor Federated Learning?", arXiv
    1911.07963, 2019, section 4 ((weak) differential privacy).

    >>> import torch
    >>> from phalanx.training import NoisyStep, ServerMomentum
    >>> model = torch.nn.Linear(1000, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> step = NoisyStep(ServerMomentum(momentum=0.0), std=0.1)
    >>> _ = step.apply(model, torch.zeros(1000), step.init(model))
    >>> 0.09 < model.weight.std().item() < 0.11
    True
    """

    std: float = 0.005
    """Standard deviation of the noise on each number."""

    seed: int = 0
    """Of the noise; whoever knows it can take the noise away."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, std=self.std)

    def init(self, model: nn.Module) -> Any:
        """What the step remembers, and the number of the round."""
        return (self.inner.init(model), 0)

    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """The step, by the noisy update."""
        inner, number = state
        source = generator(self.seed, "noise on the aggregate", number)
        drawn = torch.randn(update.shape, dtype=update.dtype, generator=source)
        noisy = update + self.std * drawn.to(update.device)
        return (self.inner.apply(model, noisy, inner), number + 1)
