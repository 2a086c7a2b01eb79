"""Dirichlet partitioner: label skew of any strength."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.checks import require_finite_above
from phalanx.data.partitioner import Partitioner, check_split, shuffled


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

    def __post_init__(self) -> None:
        require_finite_above(0, alpha=self.alpha)

    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """Each class in random order, cut by its shares; see `Partitioner.split`."""
        classes = check_split(targets, num_workers)
        order = shuffled(len(classes), generator)
        # NumPy's, since torch draws from a Dirichlet distribution with its global generator only.
        seed = int(torch.randint(2**62, (), generator=generator))
        source = np.random.default_rng(seed)
        pieces: list[list[Tensor]] = [[] for _ in range(num_workers)]
        for each in classes.unique().tolist():
            members = order[classes[order] == each]
            shares = source.dirichlet(np.full(num_workers, self.alpha))
            cuts = np.rint(shares.cumsum()[:-1] * len(members)).astype(int)
            for own, piece in zip(pieces, members.tensor_split(cuts.tolist()), strict=True):
                own.append(piece)
        return [torch.cat([order[:0], *own]) for own in pieces]
