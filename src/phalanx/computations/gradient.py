"""Gradient of the mean loss, for distributed SGD."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.computations.base import Broadcast, Computation, Computed, Samples, State
from phalanx.computations.objective import Objective


@dataclass(frozen=True)
class Gradient(Computation):
    """Gradient of the mean loss of a partition's samples: distributed SGD.

    `g_p = 1/b sum_i grad l(x; z_i)` over the b samples of partition p.

    Cost: one backward pass per partition; many partitions by one vectorised call where
    `torch.func.vmap` takes the model.

    >>> import torch
    >>> from phalanx.computations import Broadcast, Gradient, Objective, Samples
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
    >>> samples = Samples(torch.ones(2, 1), torch.zeros(2, 1))
    >>> Gradient().compute(objective, Broadcast(torch.tensor([3.0])), samples, (), None).update
    tensor([6.])
    """

    @property
    def vectorised(self) -> bool:
        """True."""
        return True

    def compute(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        generator: torch.Generator | None,
    ) -> Computed:
        """One backward pass; see `Computation.compute`."""
        return Computed(*objective.gradient(broadcast.parameters, *samples))

    def compute_many(
        self, objective: Objective, broadcast: Broadcast, samples: Samples
    ) -> tuple[Float[Tensor, "partitions dim"], Float[Tensor, " partitions"]]:
        """One vectorised backward pass; see `Computation.compute_many`."""
        return objective.gradients(broadcast.parameters, *samples)
