"""Local steps on minibatches of clients' own samples, one client alone or several together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.computations import Objective, Samples


@dataclass(frozen=True)
class Minibatches:
    """Minibatches of a client in a round: epoch after epoch, each in a new order."""

    batch_size: int
    """Samples of one; the last of an epoch may be smaller."""
    epochs: int
    """Passes over the samples, unless `num_steps` is given."""
    num_steps: int | None
    """How many minibatches there are."""

    def plan(self, num_samples: int, generator: torch.Generator | None) -> list[Tensor]:
        """Indices of the samples of every local step."""
        found: list[Tensor] = []
        epochs = 0
        while epochs < self.epochs if self.num_steps is None else len(found) < self.num_steps:
            found += torch.randperm(num_samples, generator=generator).split(self.batch_size)
            epochs += 1
        return found[: self.num_steps]


class AloneStep(NamedTuple):
    """Local step of one client: the plain kernels, the same on every engine.

    Attributes:
        objective: the loss.
        inputs: of the minibatch.
        targets: of the minibatch.
    """

    objective: Objective
    inputs: Tensor
    targets: Tensor

    def take(self, rows: Tensor) -> Tensor:
        """All of it."""
        return rows

    def put(self, rows: Tensor, moved: Tensor) -> Tensor:
        """What became of it."""
        return moved

    def gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """`(dim,)` and a number."""
        return self.objective.gradient(points, self.inputs, self.targets)


class JointStep(NamedTuple):
    """Local step of several clients; those with minibatches of one size by one vectorised call.

    Attributes:
        objective: the loss.
        active: `(active,)`, the clients that are not done yet; None while that is all of them.
        groups: by size, places among these, and their minibatches, `(clients, size, ...)`.
    """

    objective: Objective
    active: Tensor | None
    groups: list[tuple[Tensor, Tensor, Tensor]]

    def take(self, rows: Tensor) -> Tensor:
        """The rows of those that step."""
        return rows if self.active is None else rows[self.active]

    def put(self, rows: Tensor, moved: Tensor) -> Tensor:
        """The other rows as they were."""
        return moved if self.active is None else rows.index_copy(0, self.active, moved)

    def gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """`(active, dim)` and `(active,)`."""
        if len(self.groups) == 1:
            return self.objective.client_gradients(points, *self.groups[0][1:])
        gradients, losses = torch.empty_like(points), points.new_empty(len(points))
        for place, inputs, targets in self.groups:
            found = self.objective.client_gradients(points[place], inputs, targets)
            gradients[place], losses[place] = found[0], found[1].to(losses.dtype)
        return gradients, losses


LocalStep = AloneStep | JointStep
"""One local step: of one client, or of those among several that are not done yet."""


def alone(objective: Objective, samples: Samples, plan: Sequence[Tensor]) -> Iterator[AloneStep]:
    """The local steps of one client."""
    for chosen in plan:
        here = chosen.to(samples.inputs.device)
        yield AloneStep(objective, samples.inputs[here], samples.targets[here])


def together(
    objective: Objective, samples: Sequence[Samples], plans: Sequence[Sequence[Tensor]]
) -> Iterator[JointStep]:
    """The local steps of several clients, as many as the longest plan has."""
    device = samples[0].inputs.device
    for number in range(max(map(len, plans))):
        active = [client for client, plan in enumerate(plans) if number < len(plan)]
        by_size: dict[int, list[int]] = {}
        for place, client in enumerate(active):
            by_size.setdefault(len(plans[client][number]), []).append(place)
        groups = []
        for places in by_size.values():
            chosen = [(samples[active[one]], plans[active[one]][number]) for one in places]
            inputs = torch.stack([own.inputs[index.to(device)] for own, index in chosen])
            targets = torch.stack([own.targets[index.to(device)] for own, index in chosen])
            groups.append((torch.tensor(places, device=device), inputs, targets))
        some = torch.tensor(active, device=device) if len(active) < len(plans) else None
        yield JointStep(objective, some, groups)
