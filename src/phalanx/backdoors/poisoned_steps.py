"""Poisoned local training: black box, or projected into a ball around the broadcast."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_above, require_at_least, require_finite_above
from phalanx.computations import Broadcast, Computation, Computed, Objective, Samples


@dataclass(frozen=True, eq=False)
class PoisonedSteps(Computation):
    """Local training on an attacker's own data, whatever samples the server has in mind.

    With `radius` None this is the black-box attack: honest training on poisoned data. With a
    radius it is projected gradient descent: every `project_every` steps, and after the last step
    of every epoch, `y <- x + (y - x) min(1, radius / ||y - x||)` around the broadcast x, so that
    the message is no longer than the radius.

    Guarantee: `||y - x|| <= radius` after every epoch, to rounding; inside the ball nothing moves.
    Cost: `epochs` passes over the poisoned data.
    Source: Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020, section 3.2 (black-box attack, PGD attack).

    >>> import torch
    >>> from phalanx.backdoors import PoisonedSteps
    >>> from phalanx.computations import Broadcast, Objective, Samples
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
    >>> poison = PoisonedSteps(torch.ones(8, 1), torch.full((8, 1), 9.0), lr=0.1, radius=0.5)
    >>> nothing = Samples(torch.ones(1, 1), torch.ones(1, 1))
    >>> poison.compute(objective, Broadcast(torch.tensor([4.0])), nothing, (), None).update
    tensor([-0.5000])
    """

    inputs: Tensor = field(repr=False)
    """The attacker's inputs; see `EdgeSet.poisoned`."""

    targets: Tensor = field(repr=False)
    """What they are to be taken for."""

    lr: float = 0.1
    """Learning rate; that of honest clients in the paper."""

    epochs: int = 2
    """Passes over the data."""

    batch_size: int = 32
    """Samples of a step."""

    momentum: float = 0.0
    """Momentum of the local steps."""

    radius: float | None = None
    """Radius of the ball that the steps are projected into (epsilon); None for no projection."""

    project_every: int = 1
    """Steps from one projection to the next."""

    def __post_init__(self) -> None:
        require_finite_above(0, lr=self.lr)
        require_above(0, radius=self.radius)
        require_at_least(
            1, epochs=self.epochs, batch_size=self.batch_size, project_every=self.project_every
        )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if len(self.inputs) != len(self.targets) or not len(self.inputs):
            raise ValueError(
                "inputs must be as many as targets, and at least 1, got "
                f"{len(self.inputs)} and {len(self.targets)}"
            )

    def compute(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: tuple[Tensor, ...],
        generator: torch.Generator | None,
    ) -> Computed:
        """The way from the broadcast to the poisoned model; `samples` are not looked at."""
        start = broadcast.parameters
        inputs, targets = self.inputs.to(start.device), self.targets.to(start.device)
        local, velocity, step = start.clone(), torch.zeros_like(start), 0
        total = torch.zeros((), device=start.device)
        for _ in range(self.epochs):
            order = torch.randperm(len(inputs), generator=generator)
            for batch in order.split(self.batch_size):
                gradient, loss = objective.gradient(local, inputs[batch], targets[batch])
                velocity = self.momentum * velocity + gradient
                local, step = local - self.lr * velocity, step + 1
                total = total + loss * len(batch)
                if step % self.project_every == 0:
                    local = self._projected(local, start)
            local = self._projected(local, start)
        return Computed(start - local, total / (self.epochs * len(inputs)))

    def _projected(self, local: Tensor, start: Tensor) -> Tensor:
        return local if self.radius is None else projected(local, start, self.radius)


def projected(
    point: Float[Tensor, " dim"], centre: Float[Tensor, " dim"], radius: float
) -> Float[Tensor, " dim"]:
    """The nearest point of a ball: `c + (p - c) min(1, r / ||p - c||)`; itself if it is inside."""
    offset = point.double() - centre.double()
    norm = offset.norm()
    if norm <= radius:
        return point
    nearest: Tensor = centre.double() + offset * (radius / norm)
    return nearest.to(point.dtype)
