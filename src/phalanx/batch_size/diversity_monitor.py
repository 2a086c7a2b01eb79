"""Gradient diversity during training, from gradients computed anyway."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from phalanx.checks import require_at_least, require_below_one


class Spread(NamedTuple):
    """Running averages over rounds.

    Attributes:
        noise: of the trace of the covariance of the samples' gradients (tr Sigma).
        signal: of the squared norm of the mean gradient.
        weight: of the rounds in both; 1 after many.
    """

    noise: float = 0.0
    signal: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True)
class DiversityMonitor:
    """Gradient diversity estimator from squared norms of workers' gradients and their mean.

    A worker's gradient, over b samples, has more noise in it than the mean over B = n b has; from
    the difference follow both noise and signal, without bias, if workers draw their samples alike.
    Both are averaged over rounds with weights that shrink, and the ratio is taken last: the mean of
    ratios would be biased.

    Cost: two norms a round, and one number to sum over workers.
    Source: McCandlish, Kaplan, Amodei, and the OpenAI Dota Team, "An Empirical Model of Large-Batch
    Training", arXiv 2018, appendix A.1, for the estimators; for the quantity, see
    `gradient_diversity`.

    >>> monitor = DiversityMonitor(num_workers=4, samples=8)
    >>> spread = monitor.update(Spread(), own_square=2.0, mean_square=1.25)
    >>> monitor.diversity(spread)  # 8 / 1 + 1
    9.0
    """

    num_workers: int
    """Workers (n)."""
    samples: int
    """Samples in a worker's gradient (b)."""
    decay: float = 0.99
    """Weight of the past in every average: rounds so far count about `1 / (1 - decay)`."""

    def __post_init__(self) -> None:
        if self.num_workers < 2:
            raise ValueError(
                "num_workers must be at least 2, or gradient and mean are one, got "
                f"{self.num_workers}"
            )
        require_at_least(1, samples=self.samples)
        require_below_one(decay=self.decay)

    def update(self, spread: Spread, own_square: float, mean_square: float) -> Spread:
        """The averages with one more round.

        Args:
            spread: the averages so far; `Spread()` before the first round.
            own_square: squared norm of a worker's gradient, averaged over the workers.
            mean_square: squared norm of the mean of their gradients.
        """
        small, large = self.samples, self.samples * self.num_workers
        noise = (own_square - mean_square) / (1 / small - 1 / large)
        signal = (large * mean_square - small * own_square) / (large - small)
        past, now = self.decay, 1 - self.decay
        return Spread(
            past * spread.noise + now * noise,
            past * spread.signal + now * signal,
            past * spread.weight + now,
        )

    def observe(
        self,
        spread: Spread,
        own: Iterable[Tensor],
        mean: Iterable[Tensor],
        group: dist.ProcessGroup | None = None,
    ) -> Spread:
        """The averages with one more round of the processes of `torch.distributed`.

        Args:
            spread: the averages so far, the same on all processes.
            own: this process's gradients, before they are averaged or compressed.
            mean: the mean over the processes.
            group: the processes; all of them by default.
        """
        mean = list(mean)
        device = mean[0].device
        total = torch.tensor(
            [squared_norm(own) / self.num_workers], dtype=torch.float64, device=device
        )
        dist.all_reduce(total, group=group)
        return self.update(spread, total.item(), squared_norm(mean))

    def diversity(self, spread: Spread) -> float | None:
        """B_S as estimated; None where the rounds so far do not tell the signal from zero."""
        if spread.signal <= 0:
            return None
        return max(1.0, 1 + spread.noise / spread.signal)


def squared_norm(tensors: Iterable[Tensor]) -> float:
    """The squared norm of all values together, summed in float64."""
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in tensors]
    return float(torch.stack(norms).square().sum()) if norms else 0.0
