"""Adversarial stragglers: groups found by spectral clustering of what the workers hold."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.coding.block_stragglers import BlockStragglers
from phalanx.coding.stragglers import Stragglers


@dataclass(frozen=True)
class SpectralStragglers(Stragglers):
    """Estimates the clusters from singular vectors of the assignment, and silences them in order.

    The singular vectors beside the constant one are clustered by k-means. On a stochastic block
    code this succeeds above the threshold that `StochasticBlockCode.detectable` states.

    Cost: one singular value decomposition, and k-means in `num_clusters - 1` dimensions.

    Source: Charles and Papailiopoulos, "Gradient Coding Using the Stochastic Block Model", ISIT
    2018 (that an adversary must find the communities first); spectral clustering is standard.

    >>> from phalanx.coding import ErasureHead, SpectralStragglers
    >>> code = ErasureHead(num_workers=6, copies=2)
    >>> silent = SpectralStragglers(num_stragglers=2, num_clusters=3)(code.assignment)
    >>> code.assignment[silent].any(dim=0).sum().item()  # a whole group: its two partitions
    2
    """

    num_clusters: int = 5
    """Groups that the adversary looks for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(2, num_clusters=self.num_clusters)

    def choose(
        self, assignment: Bool[Tensor, "workers partitions"], generator: torch.Generator
    ) -> list[int]:
        """See `Stragglers`.

        Raises:
            ValueError: if there are fewer workers than clusters.
        """
        if self.num_clusters > len(assignment):
            raise ValueError(
                f"num_clusters must be at most num_workers, got {self.num_clusters} of "
                f"{len(assignment)}"
            )
        clusters = self.estimate(assignment, generator).tolist()
        return BlockStragglers(self.num_stragglers, clusters).choose(assignment, generator)

    def estimate(
        self, assignment: Bool[Tensor, "workers partitions"], generator: torch.Generator
    ) -> Int[Tensor, " workers"]:
        """The cluster that every worker seems to belong to."""
        # Imported where it is used: it takes as long to import as torch.
        from sklearn.cluster import KMeans

        held = assignment.double()
        left, sizes, _ = torch.linalg.svd(held - held.mean(dim=0), full_matrices=False)
        places = (left * sizes)[:, : self.num_clusters - 1]
        seed = int(torch.randint(2**31, (), generator=generator))
        means = KMeans(self.num_clusters, n_init=10, random_state=seed)
        return torch.from_numpy(means.fit_predict(places.numpy())).long()
