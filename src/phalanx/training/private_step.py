"""The Gaussian mechanism on the server: a step by the decoded update with noise."""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from phalanx.checks import require_finite_above, require_finite_at_least
from phalanx.privacy.noise import with_noise
from phalanx.training.received import Received
from phalanx.training.server_step import StepAround


@dataclass(frozen=True)
class PrivateStep(StepAround):
    """Gaussian mechanism on the decoded update, before another step: `u + N(0, std^2 I)`.

    The noise is that of `phalanx.privacy.noise`: from a secret, and on a grid. Workers whose
    updates are missing count as zeros, so that the sensitivity stays what it is. Made by
    `DifferentialPrivacy`, which also accounts for it; alone it guarantees nothing.

    Cost: one pass over the update, and 8 pseudo-random bytes a number.
    Source: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014, appendix A.

    >>> import torch
    >>> from phalanx.training import PrivateStep, ServerMomentum
    >>> model = torch.nn.Linear(1000, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> step = PrivateStep(ServerMomentum(momentum=0.0), std=0.1, secret="nobody else knows it")
    >>> _ = step.apply(model, torch.zeros(1000), step.init(model))
    >>> 0.09 < model.weight.std().item() < 0.11
    True
    """

    std: float = 0.01
    """Standard deviation of the noise on each number."""

    sensitivity: float = 1.0
    """Euclidean distance by which one record moves the update at most."""

    secret: str = field(default="0", repr=False)
    """What the noise is drawn from; one that nobody knows, and no other process uses."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, std=self.std)
        require_finite_above(0, sensitivity=self.sensitivity)

    def init(self, model: nn.Module) -> Any:
        """What the step remembers, and the number of the release."""
        return (self.inner.init(model), 0)

    def receive(self, model: nn.Module, received: Received, state: Any) -> Any:
        """The step, by the mean over all workers, of whom those that are missing sent zeros."""
        share = received.usable.float().mean().item() if received.averaged else 1.0
        return self.apply(model, received.update * share, state)

    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """The step, by the noisy update."""
        inner, number = state
        label, seed = f"noise of the server {number}", self.secret.encode()
        noisy = with_noise(update, self.std, self.sensitivity, seed, label)
        return (self.inner.apply(model, noisy, inner), number + 1)
