"""Stochastic block code: groups that help against random stragglers, and that none can see."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from phalanx.coding.approximate_code import ApproximateCode, draw_assignment
from phalanx.randomness import generator


@dataclass(frozen=True)
class StochasticBlockCode(ApproximateCode):
    """SBC: workers hold the partitions of their hidden cluster with one chance, others with less.

    Between `ErasureHead` (inside = 1, across = 0), which is best against random stragglers and
    worst against an adversary who silences a whole group, and `BernoulliGradientCode` (both the
    same), which has no groups. Workers and partitions are shuffled, so that an adversary must find
    the clusters first, in what the workers hold. Below a threshold nobody knows an efficient way:
    see `detectable` and `recommend`.

    Cost: as `BernoulliGradientCode`, with the expected load s inside + (n - s) across.

    Source: Charles and Papailiopoulos, "Gradient Coding Using the Stochastic Block Model", ISIT
    2018. The paper shuffles one side; here both are, since known groups of partitions betray those
    of the workers.

    >>> from phalanx.coding import StochasticBlockCode
    >>> code = StochasticBlockCode.recommend(num_workers=100, cluster_size=5, load=5)
    >>> code.detectable(), round(code.load, 6), round(code.inside, 3), round(code.across, 4)
    (False, 5.0, 0.464, 0.0282)
    """

    cluster_size: int = 3
    """Workers in a hidden cluster, and partitions (s in the paper); divides num_workers."""

    inside: float = 0.7
    """Chance that a worker holds a partition of its own cluster (p in the paper)."""

    across: float = 0.075
    """Chance that it holds one of another cluster (q in the paper); at most `inside`."""

    seed: int = 0
    """Of the clusters and the assignment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cluster_size < 1 or self.num_workers % self.cluster_size:
            raise ValueError(
                f"cluster_size must divide num_workers = {self.num_workers}, got "
                f"{self.cluster_size}"
            )
        if not 0 <= self.across <= self.inside <= 1 or self.inside == 0:
            raise ValueError(
                "inside and across must obey 0 <= across <= inside <= 1 and inside > 0, got "
                f"inside={self.inside}, across={self.across}"
            )

    @classmethod
    def recommend(
        cls,
        num_workers: int,
        cluster_size: int,
        load: int | float,
        *,
        signal_to_noise: float = 0.95,
        seed: int = 0,
    ) -> "StochasticBlockCode":
        """The code of a load with the clearest clusters that are not yet `detectable`.

        Args:
            num_workers: workers (k in the paper).
            cluster_size: workers in a cluster (s).
            load: partitions that a worker is to compute on average.
            signal_to_noise: how near to the threshold at 1; by default just below.
            seed: of the clusters and the assignment.

        Raises:
            ValueError: if no such code has that load.
        """
        if not 1 <= load <= num_workers:
            raise ValueError(f"load must be from 1 to num_workers = {num_workers}, got {load}")
        contrast = math.sqrt(signal_to_noise * load) / cluster_size  # inside - across
        across = load / num_workers - contrast * cluster_size / num_workers
        if across + contrast > 1:
            across = (load - cluster_size) / max(num_workers - cluster_size, 1)
            contrast = 1 - across
        if across < 0:
            raise ValueError(
                f"load must be at least cluster_size = {cluster_size} to hide clusters of that "
                f"size, got {load}"
            )
        return cls(
            num_workers,
            cluster_size=cluster_size,
            inside=across + contrast,
            across=across,
            seed=seed,
        )

    @cached_property
    def clusters(self) -> Int[Tensor, " workers"]:
        """The hidden cluster of every worker."""
        return self._shuffled("workers")

    @property
    def probabilities(self) -> Float[Tensor, "workers partitions"]:
        """`inside` where worker and partition belong to one cluster, `across` elsewhere."""
        together = self.clusters[:, None] == self._shuffled("partitions")[None, :]
        return torch.where(together, self.inside, self.across).double()

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition, drawn from the seed."""
        return draw_assignment(self.probabilities, generator(self.seed, "assignment"))

    @property
    def signal_to_noise(self) -> float:
        """How clearly the clusters show: `(s (p - q))^2 / load`.

        With a = k p and b = k q this is the ratio `(a - b)^2 / (K (a + (K - 1) b))` of Kesten and
        Stigum for K = k / s communities. It is also where singular vectors of the assignment begin
        to show them: `s (p - q)` is the singular value of the clusters, and `sqrt(load)` that of
        the noise.
        """
        return (self.cluster_size * (self.inside - self.across)) ** 2 / self.load

    def detectable(self) -> bool:
        """Whether efficient algorithms are known that find the clusters in large codes.

        A statement about large codes, and a belief rather than a theorem below the threshold; small
        ones may betray a part of their clusters below it, and keep them above.
        """
        return self.signal_to_noise > 1

    def _shuffled(self, of: str) -> Tensor:
        order = torch.randperm(self.num_workers, generator=generator(self.seed, "clusters", of))
        return order // self.cluster_size
