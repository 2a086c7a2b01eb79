"""Delay models: how long workers take, drawn for all rounds and workers at once."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_between, require_finite_above, require_finite_at_least
from phalanx.randomness import generator
from phalanx.stragglers.latency import harmonic

_BLOCK = 256  # rounds of a run that are drawn at once


def _check_rank(rank: int, num_workers: int) -> None:
    """Raises ValueError unless that many of the workers can have arrived."""
    if not 1 <= rank <= num_workers:
        raise ValueError(f"rank must be from 1 to num_workers = {num_workers}, got {rank}")


@dataclass(frozen=True)
class DelayModel(ABC):
    """How long each worker takes from the start of a round to its message."""

    @abstractmethod
    def draw(
        self, num_rounds: int, num_workers: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "rounds workers"]:
        """Seconds, float64, on the CPU; infinity for a message that never comes.

        Args:
            num_rounds: how many rounds.
            num_workers: how many workers.
            generator: source of randomness, on the CPU; None draws from torch's global one.
        """

    def at(self, step: int, num_workers: int, seed: int) -> Float[Tensor, " workers"]:
        """The delays of one round of a run: the same in whatever order rounds are asked for.

        They are drawn 256 rounds at a time, so where rounds depend on each other (`Bursty`), the
        dependence is broken once in 256 rounds.

        Args:
            step: the round, counted from 0.
            num_workers: how many workers.
            seed: of the run.
        """
        block, row = divmod(step, _BLOCK)
        return _drawn(self, block, num_workers, seed)[row]


@lru_cache(maxsize=4)
def _drawn(model: DelayModel, block: int, num_workers: int, seed: int) -> Tensor:
    return model.draw(_BLOCK, num_workers, generator(seed, "delays", block))


@dataclass(frozen=True)
class ShiftedExponential(DelayModel):
    """A time that everybody needs, and an exponential wait on top: independent, no memory.

    Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
    Learning Using Codes", IEEE Transactions on Information Theory 2018, section on runtime
    (`shift_s` = 1 and `mean_s` = 1 / mu there).

    >>> model = ShiftedExponential(shift_s=1.0, mean_s=0.5)
    >>> round(model.expected_arrival(rank=9, num_workers=10), 3)
    1.964
    """

    shift_s: float = 1.0
    """Seconds that every worker needs at least."""

    mean_s: float = 0.5
    """Mean of the exponential wait in seconds; 0 for none."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, shift_s=self.shift_s, mean_s=self.mean_s)

    def draw(
        self, num_rounds: int, num_workers: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "rounds workers"]:
        """Independent draws; see `DelayModel.draw`."""
        waits = torch.empty(num_rounds, num_workers, dtype=torch.float64)
        waits.exponential_(generator=generator)
        return waits.mul_(self.mean_s).add_(self.shift_s)

    def expected_arrival(self, rank: int, num_workers: int) -> float:
        """Mean seconds until `rank` of `num_workers` have arrived.

        `shift_s + mean_s (H_n - H_{n - rank})`, where H_n is the n-th harmonic number.
        """
        _check_rank(rank, num_workers)
        waited = harmonic(num_workers) - harmonic(num_workers - rank)
        return self.shift_s + self.mean_s * waited


@dataclass(frozen=True)
class Pareto(DelayModel):
    """Heavy tails: most workers are quick, and a few take longer than any mean suggests.

    >>> round(Pareto(scale_s=1.0, shape=2.0).expected_arrival(rank=10, num_workers=10), 3)
    5.675
    """

    scale_s: float = 1.0
    """Seconds that every worker needs at least."""

    shape: float = 2.0
    """The tail: P(delay > t) = (scale_s / t) ** shape. The mean is infinite at 1 or below."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, scale_s=self.scale_s)
        require_finite_above(0, shape=self.shape)

    def draw(
        self, num_rounds: int, num_workers: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "rounds workers"]:
        """Independent draws; see `DelayModel.draw`."""
        logarithms = torch.empty(num_rounds, num_workers, dtype=torch.float64)
        logarithms.exponential_(self.shape, generator=generator)
        return logarithms.exp_().mul_(self.scale_s)

    def expected_arrival(self, rank: int, num_workers: int) -> float:
        """Mean seconds until `rank` of `num_workers` have arrived; infinite where it has no mean.

        `scale_s G(n + 1) G(n - rank + 1 - 1/a) / (G(n - rank + 1) G(n + 1 - 1/a))`, where G is the
        gamma function and a is `shape`.
        """
        _check_rank(rank, num_workers)
        above, part = num_workers - rank + 1, 1 / self.shape
        if above <= part:
            return math.inf
        logarithm = math.lgamma(num_workers + 1) - math.lgamma(num_workers + 1 - part)
        return self.scale_s * math.exp(logarithm + math.lgamma(above - part) - math.lgamma(above))


@dataclass(frozen=True)
class Bimodal(DelayModel):
    """Each worker is either fast or slow in each round, independently: a shared, busy machine.

    >>> import torch
    >>> Bimodal(fast_s=1.0, slow_s=9.0, slow_share=1.0).draw(1, 2)
    tensor([[9., 9.]], dtype=torch.float64)
    """

    fast_s: float = 1.0
    """Seconds of a fast worker."""

    slow_s: float = 10.0
    """Seconds of a slow one."""

    slow_share: float = 0.1
    """Probability of being slow."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, fast_s=self.fast_s, slow_s=self.slow_s)
        require_between(0, 1, slow_share=self.slow_share)

    def draw(
        self, num_rounds: int, num_workers: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "rounds workers"]:
        """Independent draws; see `DelayModel.draw`."""
        drawn = torch.rand(num_rounds, num_workers, dtype=torch.float64, generator=generator)
        return torch.where(drawn < self.slow_share, self.slow_s, self.fast_s).double()


@dataclass(frozen=True)
class Bursty(DelayModel):
    """Workers that turn slow and stay so for a while: a Markov chain over the rounds.

    A worker is slow for the share `enter / (enter + leave)` of all rounds, and `1 / leave` rounds
    in a row on average. In the first round the chain is in that balance already.

    >>> import torch
    >>> Bursty(base=Bimodal(slow_share=0.0), enter=1.0, leave=0.0, slowdown=3.0).draw(2, 1)
    tensor([[3.],
            [3.]], dtype=torch.float64)
    """

    base: DelayModel = ShiftedExponential()
    """How long workers take while they are not slow."""

    slowdown: float = 10.0
    """How many times longer they take while they are."""

    enter: float = 0.02
    """Probability that a worker which is not slow is so in the next round."""

    leave: float = 0.2
    """Probability that a slow worker is no longer slow in the next round."""

    def __post_init__(self) -> None:
        require_finite_at_least(1, slowdown=self.slowdown)
        require_between(0, 1, enter=self.enter, leave=self.leave)
        if self.enter + self.leave == 0:
            raise ValueError("enter or leave must be above 0, got 0 for both")

    def draw(
        self, num_rounds: int, num_workers: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "rounds workers"]:
        """Workers are independent, rounds are not; see `DelayModel.draw`."""
        delays = self.base.draw(num_rounds, num_workers, generator)
        drawn = torch.rand(num_rounds, num_workers, dtype=torch.float64, generator=generator)
        slow = torch.empty(num_rounds, num_workers, dtype=torch.bool)
        # A draw below the threshold makes a worker slow, whatever it was: thresholds differ.
        threshold = torch.full((num_workers,), self.enter / (self.enter + self.leave)).double()
        for now, chance in zip(slow, drawn, strict=True):
            torch.lt(chance, threshold, out=now)
            threshold = torch.where(now, 1 - self.leave, self.enter).double()
        return torch.where(slow, delays * self.slowdown, delays)


@dataclass(frozen=True)
class RecordedTrace(DelayModel):
    """Delays that were measured: a CSV file with one line per round and one column per worker.

    Entries are seconds; `inf` for a message that never came. Lines that begin with `#` are skipped.
    Rounds come in the file's order, and from its start again where there are more.
    """

    path: Path = Path("delays.csv")
    """The file."""

    def draw(
        self, num_rounds: int, num_workers: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "rounds workers"]:
        """The first `num_rounds` rounds of the first `num_workers` workers; nothing is random.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds anything but times, or fewer columns than workers.
        """
        return self._rounds(np.arange(num_rounds), num_workers)

    def at(self, step: int, num_workers: int, seed: int) -> Float[Tensor, " workers"]:
        """Round `step` of the file; see `DelayModel.at`."""
        return self._rounds(np.array([step]), num_workers)[0]

    def _rounds(self, steps: np.ndarray[Any, np.dtype[np.int64]], num_workers: int) -> Tensor:
        found = self._found
        if found.shape[1] < num_workers:
            raise ValueError(
                f"{self.path} must hold a column for each of {num_workers} workers, got "
                f"{found.shape[1]}"
            )
        return torch.from_numpy(found[steps % len(found), :num_workers])

    @cached_property
    def _found(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The file, read once."""
        found = np.loadtxt(self.path, delimiter=",", ndmin=2, dtype=np.float64)
        if not found.size or not (found >= 0).all():
            raise ValueError(f"{self.path} must hold seconds of at least 0, and at least one round")
        return found
