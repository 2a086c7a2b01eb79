"""Adversarial stragglers: greedy choice, one worker at a time."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from phalanx.coding.stragglers import Stragglers

_RIDGE = 1e-8  # so that workers who hold the same count as replaceable, not as a division by zero


@dataclass(frozen=True)
class GreedyStragglers(Stragglers):
    """Silences, one at a time, the worker without whom the optimal decoder errs most.

    To find the worst set is NP-hard in general; this is what an adversary can afford. Ties go to
    the worker with the lowest number.

    Cost: O(num_stragglers workers^3): all candidates of a step are judged by one inverse.

    Source: Charles, Papailiopoulos and Ellenberg, "Approximate Gradient Coding via Sparse Random
    Graphs", 2017 (adversarial stragglers are NP-hard to choose); the greedy choice is elementary.

    >>> import torch
    >>> from phalanx.coding import GreedyStragglers
    >>> held = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).bool()
    >>> GreedyStragglers(num_stragglers=1)(held)  # nobody else holds the last partition
    tensor([False, False,  True, False])
    """

    def choose(
        self, assignment: Bool[Tensor, "workers partitions"], generator: torch.Generator
    ) -> list[int]:
        """See `Stragglers`."""
        held = assignment.double()
        present = list(range(len(held)))
        chosen = []
        for _ in range(self.num_stragglers):
            losses = _losses(held[present]).round(decimals=5)
            chosen.append(present.pop(int(losses.argmax())))
        return chosen


def _losses(held: Tensor) -> Tensor:
    """By how much the least-squares error grows without each of the workers, `(workers,)`.

    Dropping variable j from a regression costs `x_j^2 / (G^-1)_jj` for its Gram matrix G.
    """
    gram = held @ held.T
    gram += _RIDGE * max(float(gram.diagonal().mean()), 1.0) * torch.eye(len(gram)).double()
    inverse = torch.linalg.inv(gram)
    losses: Tensor = (inverse @ held.sum(dim=1)).square() / inverse.diagonal()
    return losses
