"""Adversarial stragglers: whole groups, by an adversary who knows them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from phalanx.coding.stragglers import Stragglers


@dataclass(frozen=True)
class BlockStragglers(Stragglers):
    """One whole cluster of workers after the other, until so many are silent.

    The worst that can be done to codes by fractional repetition: where groups divide them evenly,
    so many stragglers take as many partitions with them. Linear time.

    Source: Charles, Papailiopoulos and Ellenberg, "Approximate Gradient Coding via Sparse Random
    Graphs", 2017 (adversarial stragglers).

    >>> from phalanx.coding import BlockStragglers, ErasureHead
    >>> code = ErasureHead(num_workers=6, copies=2)
    >>> BlockStragglers(num_stragglers=3)(code.assignment)
    tensor([ True,  True,  True, False, False, False])
    """

    clusters: list[int] | None = None
    """The cluster of every worker, if the adversary knows them; by default those who hold the same
    partitions form one."""

    def choose(
        self, assignment: Bool[Tensor, "workers partitions"], generator: torch.Generator
    ) -> list[int]:
        """See `Stragglers`.

        Raises:
            ValueError: if `clusters` does not name one for each worker.
        """
        clusters = self.clusters
        if clusters is None:
            clusters = torch.unique(assignment, dim=0, return_inverse=True)[1].tolist()
        if len(clusters) != len(assignment):
            raise ValueError(
                f"clusters must name one for each of {len(assignment)} workers, got {len(clusters)}"
            )
        first = {cluster: worker for worker, cluster in reversed(list(enumerate(clusters)))}
        order = sorted(range(len(clusters)), key=lambda worker: (first[clusters[worker]], worker))
        return order[: self.num_stragglers]
