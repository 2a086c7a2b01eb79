"""Base of what clients compute by local steps, one by one or several together."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.computations import Broadcast, Computation, Computed, Objective, Samples
from phalanx.federated.local_steps import LocalStep, Minibatches, alone, together

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class LocalComputation(Computation):
    """Computation of a client by local steps on its own samples.

    A subclass says what one step does, and what is sent after the last; both take the rows of
    several clients as they take the vector of one, so that the two ways are one text.
    """

    lr: float
    """Learning rate of the local steps."""

    batches: Minibatches
    """Which samples they are of."""

    @property
    def takes_clients(self) -> bool:
        """True."""
        return True

    @abstractmethod
    def begin(self, broadcast: Broadcast, points: Tensor, states: State) -> dict[str, Tensor]:
        """What changes from step to step, `(..., dim)` each, `points` among it.

        Args:
            broadcast: of the round.
            points: the round's parameters: `(dim,)`, or `(clients, dim)`.
            states: what is remembered, with an axis of clients if `points` has one.
        """

    @abstractmethod
    def advance(
        self, step: LocalStep, values: dict[str, Tensor], broadcast: Broadcast
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One local step: the values after it, and the loss before.

        Args:
            step: whose gradients of which samples.
            values: those of `begin`, of the clients that step.
            broadcast: of the round.
        """

    @abstractmethod
    def finish(
        self,
        values: dict[str, Tensor],
        broadcast: Broadcast,
        num_steps: Tensor,
        full: "FullGradients",
    ) -> tuple[Tensor, State]:
        """What is sent, `(..., num_vectors dim)`, and what is remembered.

        Args:
            values: after the last step.
            broadcast: of the round.
            num_steps: how many there were, `(..., 1)`.
            full: gives the gradients of all samples of each client at the round's parameters.
        """

    def compute(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        generator: torch.Generator | None,
    ) -> Computed:
        """The local steps of one client; see `Computation.compute`."""
        plan = self.batches.plan(len(samples.inputs), generator)
        start = broadcast.parameters
        values, loss = self._walk(
            alone(objective, samples, plan), self.begin(broadcast, start, state), broadcast
        )
        full = FullGradients(objective, start, [samples], squeezed=True)
        update, state = self.finish(values, broadcast, start.new_tensor([len(plan)]), full)
        return Computed(update, loss / len(plan), state)

    def compute_clients(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Sequence[Samples],
        states: Sequence[State],
        generators: Sequence[torch.Generator],
    ) -> Sequence[Computed]:
        """The same for several clients; see `Computation.compute_clients`."""
        pairs = zip(samples, generators, strict=True)
        plans = [self.batches.plan(len(own.inputs), draws) for own, draws in pairs]
        start = broadcast.parameters
        remembered = tuple(torch.stack(parts) for parts in zip(*states, strict=True))
        begun = self.begin(broadcast, start.expand(len(samples), -1), remembered)
        steps = together(objective, samples, plans)
        values, losses = self._walk(steps, begun, broadcast)
        counts = start.new_tensor([[len(plan)] for plan in plans])
        full = FullGradients(objective, start, samples, squeezed=False)
        updates, after = self.finish(values, broadcast, counts, full)
        losses = losses / counts[:, 0]
        return [
            Computed(update, losses[place], tuple(part[place] for part in after))
            for place, update in enumerate(updates)
        ]

    def _walk(
        self, steps: Iterable[LocalStep], values: dict[str, Tensor], broadcast: Broadcast
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All local steps: the values after the last, and the sum of the losses."""
        points = values["points"]
        losses = torch.zeros(points.shape[:-1], device=points.device)
        for step in steps:
            own = {name: step.take(one) for name, one in values.items()}
            moved, loss = self.advance(step, own, broadcast)
            values = {name: step.put(values[name], one) for name, one in moved.items()}
            losses = step.put(losses, step.take(losses) + loss.to(losses.dtype))
        return values, losses


@dataclass(frozen=True)
class FullGradients:
    """Gradients of all samples of each client at the round's parameters, for who asks."""

    objective: Objective
    """The loss."""
    point: Tensor
    """The parameters."""
    samples: Sequence[Samples]
    """Of each client."""
    squeezed: bool
    """Whether it is one client, without an axis for it."""

    def __call__(self) -> Tensor:
        """`(clients, dim)`, or `(dim,)`."""
        rows = [self.objective.gradient(self.point, *own)[0] for own in self.samples]
        return rows[0] if self.squeezed else torch.stack(rows)
