"""Clipping of whole updates, as in client-level differential privacy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.checks import require_finite_above
from phalanx.computations.base import Broadcast, Computation, Computed, Samples, State
from phalanx.computations.gradient import Gradient
from phalanx.computations.objective import Objective
from phalanx.parameters import ParameterLayout


@dataclass(frozen=True)
class ClippedUpdate(Computation):
    """Update of another computation, as a whole clipped to a Euclidean norm.

    `u min(1, C / ||u||)`: whatever samples a worker or client holds, it moves the sum of updates by
    at most C, all vectors of an update taken together. One that is not finite is sent as zero.
    What is remembered is the computation's, and stays with the client.

    Cost: that of the computation, and two passes over the update.
    Source: McMahan, Ramage, Talwar and Zhang, "Learning Differentially Private Recurrent Language
    Models", ICLR 2018 (Algorithm 1, FlatClip).

    >>> import torch
    >>> from phalanx.computations import Broadcast, ClippedUpdate, Objective, Samples
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
    >>> samples, clipped = Samples(torch.ones(2, 1), torch.zeros(2, 1)), ClippedUpdate(max_norm=1.0)
    >>> clipped.compute(objective, Broadcast(torch.tensor([3.0])), samples, (), None).update
    tensor([1.])
    """

    inner: Computation = Gradient()  # noqa: RUF009 - frozen
    """What is computed."""

    max_norm: float = 1.0
    """Euclidean norm to which an update is cut down."""

    def __post_init__(self) -> None:
        require_finite_above(0, max_norm=self.max_norm)

    @property
    def num_vectors(self) -> int:
        """That of the computation."""
        return self.inner.num_vectors

    @property
    def takes_clients(self) -> bool:
        """Whether the computation does."""
        return self.inner.takes_clients

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
        """The computation, clipped; see `Computation.compute`."""
        made = self.inner.compute(objective, broadcast, samples, state, generator)
        return made._replace(update=self._clipped(made.update))

    def compute_clients(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Sequence[Samples],
        states: Sequence[State],
        generators: Sequence[torch.Generator],
    ) -> Sequence[Computed]:
        """Several clients at once, each clipped; see `Computation.compute_clients`."""
        made = self.inner.compute_clients(objective, broadcast, samples, states, generators)
        return [one._replace(update=self._clipped(one.update)) for one in made]

    def _clipped(self, update: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(update, dtype=torch.float64)
        if not norm.isfinite():
            return torch.zeros_like(update)
        return torch.mul(update, (self.max_norm / norm).clamp(max=1.0).to(update.dtype))
