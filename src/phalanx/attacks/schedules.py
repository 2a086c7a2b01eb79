"""Schedules of Byzantine workers: who attacks in which round, the same in every process."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from jaxtyping import Bool
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.randomness import generator


@dataclass(frozen=True)
class Schedule(ABC):
    """A schedule of Byzantine workers in a drill."""

    @abstractmethod
    def byzantine(self, step: int, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """Mask of the workers `0 .. num_workers - 1` that are Byzantine in this step.

        Args:
            step: the round, counted from 0.
            num_workers: how many workers there are.
            seed: the run's seed.

        Raises:
            ValueError: if the schedule does not fit `num_workers`.
        """

    def among(
        self, members: Sequence[int], step: int, num_workers: int, seed: int
    ) -> Bool[Tensor, " members"]:
        """Mask of those that take part in this step: clients that were sampled, say.

        Args:
            members: ids of those that take part.
            step: the round, counted from 0.
            num_workers: how many there are in all.
            seed: the run's seed.
        """
        return self.byzantine(step, num_workers, seed)[list(members)]

    def permanent(self, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """Mask of the workers that are Byzantine for good, from some step on. By default nobody.

        Args:
            num_workers: how many workers there are.
            seed: the run's seed.
        """
        return torch.zeros(num_workers, dtype=torch.bool)


@dataclass(frozen=True)
class FixedWorkers(Schedule):
    """The same Byzantine workers in every step, as faulty machines are.

    >>> FixedWorkers(workers=[0, 3]).byzantine(step=7, num_workers=4, seed=0)
    tensor([ True, False, False,  True])
    """

    workers: list[int] = field(default_factory=lambda: [0])
    """Ids of the Byzantine workers, counted from 0."""

    def __post_init__(self) -> None:
        _check_ids(self.workers)

    def byzantine(self, step: int, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """The same workers whatever the step and the seed."""
        return _mask(self.workers, num_workers)

    def permanent(self, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """All of them."""
        return _mask(self.workers, num_workers)


@dataclass(frozen=True)
class RandomWorkers(Schedule):
    """Byzantine workers drawn afresh and uniformly in every step.

    No reputation helps against it: everybody is Byzantine sometimes.

    Source: Chen, Wang, Charles, Papailiopoulos, "DRACO: Byzantine-resilient Distributed Training
    via Redundant Gradients", ICML 2018, experiments (the adversaries of each iteration are random).

    >>> schedule = RandomWorkers(num_byzantine=2)
    >>> [schedule.byzantine(step, num_workers=9, seed=3).sum().item() for step in range(3)]
    [2, 2, 2]
    """

    num_byzantine: int = 1
    """How many workers are Byzantine in each step (s in the paper)."""

    def __post_init__(self) -> None:
        _check_number(self.num_byzantine)

    def byzantine(self, step: int, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """Workers drawn from `(seed, step)`."""
        return _drawn(self.num_byzantine, num_workers, generator(seed, "byzantine", step))

    def among(
        self, members: Sequence[int], step: int, num_workers: int, seed: int
    ) -> Bool[Tensor, " members"]:
        """So many of those that take part."""
        return self.byzantine(step, len(members), seed)


@dataclass(frozen=True)
class SleeperWorkers(Schedule):
    """Byzantine workers that are honest until a step: they spend a good reputation.

    >>> schedule = SleeperWorkers(workers=[1], from_step=5)
    >>> schedule.byzantine(4, 3, seed=0), schedule.byzantine(5, 3, seed=0)
    (tensor([False, False, False]), tensor([False,  True, False]))
    """

    workers: list[int] | None = None
    """Ids of the sleepers, counted from 0; drawn once per run from its seed if not given."""

    num_byzantine: int = 1
    """How many sleepers are drawn where `workers` is not given."""

    from_step: int = 10
    """The first step, counted from 0, in which they are Byzantine."""

    def __post_init__(self) -> None:
        _check_ids(self.workers or [])
        _check_number(self.num_byzantine)
        require_at_least(0, from_step=self.from_step)

    def byzantine(self, step: int, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """Nobody before `from_step`, the sleepers from then on."""
        sleepers = self.permanent(num_workers, seed)
        return sleepers if step >= self.from_step else torch.zeros_like(sleepers)

    def permanent(self, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """The sleepers."""
        if self.workers is not None:
            return _mask(self.workers, num_workers)
        return _drawn(self.num_byzantine, num_workers, generator(seed, "sleepers"))


@dataclass(frozen=True)
class PeriodicWorkers(Schedule):
    """Byzantine workers that attack at a fixed frequency: in every k-th step, from some step on.

    In between they do their duty, so that nobody is Byzantine for good. Where clients are sampled,
    they take as many of the round's seats.

    Source: Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee and Papailiopoulos, "Attack
    of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, experiments
    (fixed-frequency attacks).

    >>> schedule = PeriodicWorkers(every=5)
    >>> [step for step in range(12) if schedule.byzantine(step, num_workers=3, seed=0).any()]
    [0, 5, 10]
    """

    every: int = 10
    """Steps from one attack to the next."""

    first: int = 0
    """The first step, counted from 0, in which they attack."""

    workers: list[int] = field(default_factory=lambda: [0])
    """Ids of the Byzantine workers, counted from 0."""

    def __post_init__(self) -> None:
        _check_ids(self.workers)
        require_at_least(1, every=self.every)
        require_at_least(0, first=self.first)

    def byzantine(self, step: int, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """The same workers in the steps `first`, `first + every` and so on; else nobody."""
        attackers = _mask(self.workers, num_workers)
        due = step >= self.first and (step - self.first) % self.every == 0
        return attackers if due else torch.zeros_like(attackers)

    def among(
        self, members: Sequence[int], step: int, num_workers: int, seed: int
    ) -> Bool[Tensor, " members"]:
        """The first so many of those that take part: attackers take seats of the round."""
        seats = replace(self, workers=list(range(len(self.workers))))
        return seats.byzantine(step, len(members), seed)


@dataclass(frozen=True)
class Phases(Schedule):
    """A sequence of schedules: phase `i` is followed from step `starts[i]` on.

    Before the first start nobody is Byzantine. Phases see the number of the step in the whole run.

    >>> calm_then_storm = Phases(phases=[FixedWorkers([0]), FixedWorkers([1, 2])], starts=[2, 5])
    >>> [calm_then_storm.byzantine(step, 3, seed=0).tolist() for step in (1, 4, 5)]
    [[False, False, False], [True, False, False], [False, True, True]]
    """

    phases: list[Schedule] | None = None
    """The schedules, in order; the same worker and then random ones, if not given."""

    starts: list[int] = field(default_factory=lambda: [0, 10])
    """The first step of each phase, counted from 0, in growing order."""

    def __post_init__(self) -> None:
        if len(self.starts) != len(self.parts) or not self.starts:
            raise ValueError(
                "starts must name one step for each of at least 1 phase, "
                f"got {self.starts} for {len(self.parts)}"
            )
        if self.starts[0] < 0 or any(a >= b for a, b in pairwise(self.starts)):
            raise ValueError(f"starts must grow from 0 or more, got {self.starts}")

    @property
    def parts(self) -> tuple[Schedule, ...]:
        """The schedules that follow one another."""
        if self.phases is None:
            return FixedWorkers(), RandomWorkers()
        return tuple(self.phases)

    def byzantine(self, step: int, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """The Byzantine workers in the phase of this step."""
        phase = bisect_right(self.starts, step) - 1
        if phase < 0:
            return torch.zeros(num_workers, dtype=torch.bool)
        return self.parts[phase].byzantine(step, num_workers, seed)

    def among(
        self, members: Sequence[int], step: int, num_workers: int, seed: int
    ) -> Bool[Tensor, " members"]:
        """Those of the phase of this step."""
        phase = bisect_right(self.starts, step) - 1
        if phase < 0:
            return torch.zeros(len(members), dtype=torch.bool)
        return self.parts[phase].among(members, step, num_workers, seed)

    def permanent(self, num_workers: int, seed: int) -> Bool[Tensor, " workers"]:
        """Those that are Byzantine for good in the last phase, which does not end."""
        return self.parts[-1].permanent(num_workers, seed)


def _check_ids(workers: list[int]) -> None:
    if any(worker < 0 for worker in workers):
        raise ValueError(f"workers must be at least 0, got {workers}")
    if len(set(workers)) < len(workers):
        raise ValueError(f"workers must be named once each, got {workers}")


def _check_number(num_byzantine: int) -> None:
    require_at_least(0, num_byzantine=num_byzantine)


def _mask(workers: list[int], num_workers: int) -> Bool[Tensor, " workers"]:
    if any(worker >= num_workers for worker in workers):
        raise ValueError(f"workers must be below num_workers, got {workers} of {num_workers}")
    mask = torch.zeros(num_workers, dtype=torch.bool)
    mask[workers] = True
    return mask


def _drawn(
    num_byzantine: int, num_workers: int, source: torch.Generator
) -> Bool[Tensor, " workers"]:
    if num_byzantine > num_workers:
        raise ValueError(
            f"num_byzantine must be at most num_workers, got {num_byzantine} of {num_workers}"
        )
    return _mask(
        torch.randperm(num_workers, generator=source)[:num_byzantine].tolist(), num_workers
    )
