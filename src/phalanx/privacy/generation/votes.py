"""Votes of teachers on where a fake should move: what is counted, and how it is decided."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_above, require_at_least, require_finite_at_least
from phalanx.privacy.top_agg import Quantise, noisy_majority, top_agg_sensitivity, top_k_votes
from phalanx.randomness import generator


class Vote(ABC):
    """Vote of teachers: a sum over teachers, to which noise is added, and a decision from it."""

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """L2 distance of two sums about one fake between which one teacher changed at will."""

    @abstractmethod
    def count(
        self, directions: Float[Tensor, "t b d"], seed: int, part: int
    ) -> Float[Tensor, "b c"]:
        """The sum over some teachers; sums over parts of them are added up.

        Args:
            directions: where each teacher would move each fake.
            seed: of the step.
            part: the number of the part, for randomness of the teachers' own.
        """

    @abstractmethod
    def decide(
        self, noisy: Float[Tensor, "b c"], num_teachers: int, seed: int, dim: int
    ) -> Float[Tensor, "b d"]:
        """Where the fakes should move, from the noisy sums alone."""


@dataclass(frozen=True)
class TopAggVote(Vote):
    """TopAgg: each teacher's k largest coordinates vote with their signs.

    Source: Wang, Wu, Long, Rimanic, Zhang, Li, "DataLens", CCS 2021, algorithm 2.
    """

    k: int = 200
    """Coordinates of which a teacher votes on each fake; at most their number."""
    threshold: float | None = None
    """beta: share of the teachers that a direction needs. If not given there is no threshold: the
    noisy sums themselves are the decision, which costs the same and keeps how many agreed."""
    stochastic: bool = False
    """Whether signs are drawn, in proportion to the coordinate; else they are certain."""

    def __post_init__(self) -> None:
        require_at_least(1, k=self.k)
        require_finite_at_least(0, threshold=self.threshold)

    @property
    def sensitivity(self) -> float:
        """Two times the root of k: all signs of a teacher turn."""
        return top_agg_sensitivity(self.k)

    def count(
        self, directions: Float[Tensor, "t b d"], seed: int, part: int
    ) -> Float[Tensor, "b d"]:
        """See `Vote`."""
        chance = generator(seed, "signs", part) if self.stochastic else None
        rows = directions.flatten(0, 1)
        how: Quantise = "stochastic" if self.stochastic else "sign"
        votes = top_k_votes(rows, self.k, how, generator=chance)
        return votes.view(directions.shape).sum(dim=0)

    def decide(
        self, noisy: Float[Tensor, "b d"], num_teachers: int, seed: int, dim: int
    ) -> Float[Tensor, "b d"]:
        """See `Vote`."""
        if self.threshold is None:
            return noisy / num_teachers
        return noisy_majority(noisy, num_teachers, self.threshold)


@dataclass(frozen=True)
class ProjectedVote(Vote):
    """G-PATE: each teacher's gradient, projected to few numbers, votes for a bin of each.

    A gradient is scaled to norm one and multiplied by a public Gaussian matrix; every projected
    number falls into one of the bins between -2 and 2. The noisiest majority of a number is its
    value if more than the threshold stand for it, else zero; the transposed matrix leads back.

    Source: Long, Wang, Yang, Kailkhura, Zhang, Gunter, Li, "G-PATE: Scalable Differentially Private
    Data Generator via Private Aggregation of Teacher Discriminators", NeurIPS 2021; the accountant
    is that of the Gaussian mechanism on the histograms, not their data-dependent bound.
    """

    num_projected: int = 10
    """Numbers to which a gradient is projected."""
    num_bins: int = 10
    """Bins of each."""
    threshold: float = 0.2
    """Share of the teachers that a bin needs."""

    def __post_init__(self) -> None:
        require_at_least(1, num_projected=self.num_projected)
        require_at_least(2, num_bins=self.num_bins)
        require_finite_at_least(0, threshold=self.threshold)

    @property
    def sensitivity(self) -> float:
        """A changed teacher leaves one bin and enters another in every histogram."""
        return math.sqrt(2 * self.num_projected)

    def count(
        self, directions: Float[Tensor, "t b d"], seed: int, part: int
    ) -> Float[Tensor, "b c"]:
        """See `Vote`."""
        norms = directions.norm(dim=2, keepdim=True).clamp(min=1e-30)
        found = (directions / norms).nan_to_num() @ self._matrix(seed, directions.shape[2])
        bins = ((found + 2) / 4 * self.num_bins).floor().clamp(0, self.num_bins - 1).long()
        return torch.nn.functional.one_hot(bins, self.num_bins).sum(dim=0).flatten(1).float()

    def decide(
        self, noisy: Float[Tensor, "b c"], num_teachers: int, seed: int, dim: int
    ) -> Float[Tensor, "b d"]:
        """See `Vote`."""
        largest, bins = noisy.view(len(noisy), -1, self.num_bins).max(dim=2)
        values = (bins.float() + 0.5) / self.num_bins * 4 - 2
        agreed = torch.where(largest > self.threshold * num_teachers, values, 0.0)
        return agreed @ self._matrix(seed, dim).T

    def _matrix(self, seed: int, dim: int) -> Tensor:
        """Public: drawn from the seed of the step, never from the noise's key."""
        return torch.randn(dim, self.num_projected, generator=generator(seed, "projection"))


def require_votes(vote: Vote, dim: int) -> None:
    """Checks that a vote fits records of so many numbers."""
    require_above(0, sensitivity=vote.sensitivity)
    if isinstance(vote, TopAggVote) and vote.k > dim:
        raise ValueError(f"vote.k must be at most the {dim} numbers of a record, got {vote.k}")
