"""Dirichlet partitioner: label skew of any strength."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.checks import require_at_least, require_finite_above
from phalanx.data.partitioner import Partitioner, check_split, shuffled

_DRAWS = 1000


@dataclass(frozen=True)
class DirichletPartitioner(Partitioner):
    """Shares of each class drawn from a Dirichlet distribution over the workers.

    Small `alpha` gives most of a class to few workers, large `alpha` about as much to each. Shares
    differ in size, and for small `alpha` some may be empty.

    Source: Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni, "Bayesian Nonparametric
    Federated Learning of Neural Networks", ICML 2019, experiments.

    >>> import torch
    >>> targets = torch.arange(1000) % 2
    >>> shards = DirichletPartitioner(alpha=1e6).split(targets, 4, torch.Generator().manual_seed(0))
    >>> all(245 <= len(shard) <= 255 for shard in shards)
    True
    """

    alpha: float = 0.5
    """Concentration: how alike the workers are, above 0."""

    min_size: int = 0
    """Samples that every worker is to have at least: it is drawn again until they do."""

    balance: bool = False
    """Whether a worker that has its even share of all samples already gets none of the classes that
    follow, as in FedMA's experiments."""

    def __post_init__(self) -> None:
        require_finite_above(0, alpha=self.alpha)
        require_at_least(0, min_size=self.min_size)

    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """Each class in random order, cut by its shares; see `Partitioner.split`.

        Raises:
            ValueError: also if `min_size` cannot be had, or was not in a thousand draws.
        """
        classes = check_split(targets, num_workers)
        if num_workers * self.min_size > len(classes):
            raise ValueError(
                f"min_size must be at most {len(classes) // num_workers} with {len(classes)} "
                f"samples and {num_workers} workers, got {self.min_size}"
            )
        order = shuffled(len(classes), generator)
        # NumPy's, since torch draws from a Dirichlet distribution with its global generator only.
        seed = int(torch.randint(2**62, (), generator=generator))
        source = np.random.default_rng(seed)
        for _ in range(_DRAWS):
            dealt = self._deal(classes, order, num_workers, source)
            if min(map(len, dealt)) >= self.min_size:
                return dealt
        raise ValueError(
            f"min_size must be such that shares of alpha = {self.alpha} have it, got "
            f"{self.min_size}, which {num_workers} workers did not have in {_DRAWS} draws"
        )

    def _deal(
        self, classes: Tensor, order: Tensor, num_workers: int, source: np.random.Generator
    ) -> list[Tensor]:
        """One draw."""
        pieces: list[list[Tensor]] = [[] for _ in range(num_workers)]
        for each in classes.unique().tolist():
            members = order[classes[order] == each]
            shares = source.dirichlet(np.full(num_workers, self.alpha))
            if self.balance:
                sizes = np.array([sum(map(len, own)) for own in pieces])
                open_ = shares * (sizes < len(classes) / num_workers)
                shares = open_ / open_.sum() if open_.sum() > 0 else shares
            cuts = np.rint(shares.cumsum()[:-1] * len(members)).astype(int)
            for own, piece in zip(pieces, members.tensor_split(cuts.tolist()), strict=True):
                own.append(piece)
        return [torch.cat([order[:0], *own]) for own in pieces]
