"""Adaptive batch size: small in critical regimes, growing elsewhere."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler

from phalanx.checks import require_above, require_at_least
from phalanx.compression import CriticalRegimes, Regime
from phalanx.randomness import generator


class BatchState(NamedTuple):
    """State of the batch size at the end of an epoch.

    Attributes:
        regime: of the whole model's gradient.
        size: samples in a batch of the next epoch.
    """

    regime: Regime
    size: int


def suggest_batch(
    diversity: float | None,
    *,
    slowdown: float = 1.0,
    num_workers: int = 1,
    least: int = 1,
    most: int | None = None,
) -> int:
    """The largest batch size that gradient diversity allows for.

    Args:
        diversity: B_S, from `gradient_diversity` or a `DiversityMonitor`; None if it is not known.
        slowdown: share by which the noise term of a step may be larger than with single samples: a
            batch of B has a share of `(B - 1) / B_S`.
        num_workers: the size is a multiple of it, unless that is below `least` or above `most`.
        least: smallest size; taken if diversity is not known.
        most: largest size.

    Raises:
        ValueError: if an argument is out of its range, or nothing bounds the size.

    >>> suggest_batch(40.0, slowdown=0.5, num_workers=4)
    20
    """
    require_above(0, slowdown=slowdown)
    require_at_least(1, num_workers=num_workers)
    require_at_least(1, least=least)
    if most is not None and most < least:
        raise ValueError(f"most must be at least {least}, got {most}")
    if diversity is None or math.isnan(diversity):
        return least
    bound = min(1 + slowdown * diversity, math.inf if most is None else most)
    if math.isinf(bound):
        raise ValueError("most must be given where diversity is infinite, got None")
    return max(least, int(bound) // num_workers * num_workers)


@dataclass(frozen=True)
class AccordionBatch:
    """A batch size that grows once the gradient's norm has settled, and never shrinks.

    Whoever trains with it multiplies the learning rate by `factor`.

    Source: Agarwal, Wang, Lee, Venkataraman, Papailiopoulos, "Adaptive Gradient Communication via
    Critical Learning Regime Identification", MLSys 2021, section 4.

    >>> batch = AccordionBatch(low=32, high=256, interval=1)
    >>> state = batch.init()
    >>> for norm in (9.0, 4.0, 3.5):
    ...     state = batch.update(state, norm)
    >>> state.size, batch.factor(state)
    (256, 8.0)
    """

    low: int = 512
    """Samples in a batch of a critical regime, over all workers."""
    high: int = 4096
    """Samples in a batch elsewhere."""
    eta: float = 0.5
    """Share by which a norm must change for a critical regime."""
    interval: int = 10
    """Epochs from one check to the next."""

    def __post_init__(self) -> None:
        require_at_least(1, low=self.low)
        if self.high < self.low:
            raise ValueError(f"high must be at least low, {self.low}, got {self.high}")
        self.regimes  # noqa: B018 - checks eta and interval

    @property
    def regimes(self) -> CriticalRegimes:
        """The detector."""
        return CriticalRegimes(self.eta, self.interval)

    def init(self) -> BatchState:
        """Before the first epoch."""
        return BatchState(Regime(), self.low)

    def update(
        self,
        state: BatchState,
        norm: float,
        rate: float = 1.0,
        next_rate: float = 1.0,
        diversity: float | None = None,
    ) -> BatchState:
        """What is known at the end of the next epoch.

        Args:
            state: what was known before it.
            norm: of the sum of its gradients, over the whole model; anything in epochs that the
                detector does not look at.
            rate: its learning rate, before it is multiplied by `factor`.
            next_rate: that of the epoch after it: a drop keeps a small batch until the next check.
            diversity: if given, the batch grows to what it suggests at most.
        """
        regime = self.regimes.update(state.regime, norm, drops=next_rate < rate)
        grown = self.high
        if diversity is not None:
            grown = suggest_batch(diversity, least=self.low, most=self.high)
        return BatchState(regime, state.size if regime.critical else max(state.size, grown))

    def factor(self, state: BatchState) -> float:
        """What the learning rate is multiplied by: the size, relative to `low`."""
        return state.size / self.low


class AccordionBatchSampler(Sampler[list[int]]):
    """Distributed batch sampler: a rank's share of every batch, for a `DataLoader`.

    Every sample is in exactly one batch of an epoch, on one rank, whatever the size is by then. So
    that no rank comes away empty-handed, an epoch is cut into batches of nearly equal sizes instead
    of full ones and a rest; and batches into shares, which differ by a sample at most.

    >>> sampler = AccordionBatchSampler(100, AccordionBatch(low=10, high=50, interval=1))
    >>> len(sampler), sampler.on_epoch_end(8.0), sampler.on_epoch_end(8.0), len(sampler)
    (10, 10, 50, 2)
    """

    def __init__(
        self,
        num_samples: int,
        batch: AccordionBatch,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        seed: int = 0,
    ) -> None:
        """Starts at epoch 0.

        Args:
            num_samples: in the data set.
            batch: decides on the size.
            rank: whose share.
            num_ranks: how many share a batch.
            seed: of the order; the same on all ranks.

        Raises:
            ValueError: if a rank might come away empty-handed, or is none of the ranks.
        """
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank must be at least 0 and below {num_ranks}, got {rank}")
        if batch.low < 2 * num_ranks:
            raise ValueError(f"low must be at least 2 x {num_ranks} ranks, got {batch.low}")
        if num_samples < num_ranks:
            raise ValueError(f"num_samples must be at least {num_ranks}, got {num_samples}")
        self.num_samples, self.batch = num_samples, batch
        self.rank, self.num_ranks, self.seed = rank, num_ranks, seed
        self.state = batch.init()

    def __len__(self) -> int:
        return -(-self.num_samples // self.state.size)

    def __iter__(self) -> Iterator[list[int]]:
        source = generator(self.seed, "order", self.state.regime.epoch)
        order = torch.randperm(self.num_samples, generator=source)
        for whole in order.tensor_split(len(self)):
            yield whole[self.rank :: self.num_ranks].tolist()

    def on_epoch_end(
        self,
        norm: float,
        rate: float = 1.0,
        next_rate: float = 1.0,
        diversity: float | None = None,
    ) -> int:
        """Ends an epoch, see `AccordionBatch.update`; returns the batch size of the next."""
        self.state = self.batch.update(self.state, norm, rate, next_rate, diversity)
        return self.state.size

    def state_dict(self) -> dict[str, Any]:
        """What an epoch depends on, for a checkpoint between two of them."""
        return {"regime": list(self.state.regime), "size": self.state.size}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Goes on where `state_dict` was asked for."""
        self.state = BatchState(Regime(*saved["regime"]), saved["size"])
