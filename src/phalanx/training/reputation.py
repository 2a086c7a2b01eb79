"""Reputation: suspicion of every worker over rounds, and permanent exclusion."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MEMORY = 0.9  # of the average: it looks back about ten rounds


class Standing(NamedTuple):
    """Reputation of every worker after some rounds; checkpointed with the run.

    Attributes:
        suspicion: `(workers,)` float64 in [0, 1], the exponential average of being suspected.
        counter: `(workers,)` int64, the rounds suspected less those held good, as `Reputation`
            counts them.
        excluded: `(workers,)` bool.
    """

    suspicion: Float[Tensor, " workers"]
    counter: Int[Tensor, " workers"]
    excluded: Bool[Tensor, " workers"]

    @property
    def out(self) -> list[int]:
        """Ids of the excluded."""
        found: list[int] = self.excluded.nonzero().flatten().tolist()
        return found


@dataclass(frozen=True)
class Reputation:
    """Exclusion policy by the verdicts on every worker: who stays suspected is excluded.

    A worker's counter goes up by one in a round in which it is suspected or its message is
    malformed, and down by one, not below zero, in one in which its message is held good; a round
    without a message leaves it. At `exclude_after` the worker is excluded for good. This is a
    cumulative sum test (CUSUM) of being suspected more often than not.

    Let p be the chance that a worker is suspected in a round. Above one half the counter climbs by
    2 p - 1 per round: a Byzantine worker that is always named is out after `exclude_after` rounds.
    Below one half it falls back, and to climb to h from zero takes `rounds_until_excluded` on
    average, about (1 / p - 1)^h: exponentially many in h. So an honest worker that a rule suspects
    now and then stays, as long as verdicts of different rounds are nearly independent. So does a
    Byzantine one that is wrong less than half of the time, and an honest one that a rule suspects
    most of the time is excluded: hence no more than `max_excluded` are ever excluded.

    Source: Page, "Continuous Inspection Schemes", Biometrika 41, 1954 (the test).
    """

    exclude_after: int | None = None
    """Where the counter excludes (h); None: nobody is excluded."""

    max_excluded: int = 0
    """Workers that may be excluded in all."""

    def init(self, num_workers: int) -> Standing:
        """Nobody is under suspicion."""
        return Standing(
            torch.zeros(num_workers, dtype=torch.float64),
            torch.zeros(num_workers, dtype=torch.int64),
            torch.zeros(num_workers, dtype=torch.bool),
        )

    def update(
        self, standing: Standing, suspects: Collection[int], arrived: Bool[Tensor, " workers"]
    ) -> Standing:
        """How workers stand after one more round.

        Where more workers reach the limit at once than may be excluded, the most suspicious go
        first, and those of lower id among equals.

        Args:
            standing: before the round.
            suspects: who was suspected in it, senders of malformed messages among them.
            arrived: whose message was decoded.
        """
        suspected = torch.zeros_like(arrived)
        suspected[list(suspects)] = True
        heard = (arrived | suspected) & ~standing.excluded
        moved = _MEMORY * standing.suspicion + (1 - _MEMORY) * suspected.double()
        counted = (standing.counter + torch.where(suspected, 1, -1)).clamp(min=0)
        after = Standing(
            moved.where(heard, standing.suspicion),
            counted.where(heard, standing.counter),
            standing.excluded.clone(),
        )
        if self.exclude_after is not None:
            due = (after.counter >= self.exclude_after) & ~after.excluded
            order = after.suspicion.argsort(descending=True, stable=True)
            room = self.max_excluded - int(after.excluded.sum())
            after.excluded[order[due[order]][: max(room, 0)]] = True
        return after


def rounds_until_excluded(chance: float, exclude_after: int) -> float:
    """How many rounds it takes on average until a worker's counter excludes it.

    Args:
        chance: that it is suspected in a round (p), above 0, the same in every round,
            independently of the others.
        exclude_after: where the counter excludes (h).

    From count i to i + 1 it takes t_i = 1 / p + (1 / p - 1) t_{i-1} rounds, and t_0 = 1 / p.

    >>> rounds_until_excluded(1.0, 10)
    10.0
    >>> [round(rounds_until_excluded(chance, 10)) for chance in (0.5, 0.4, 0.3, 0.2)]
    [110, 800, 20900, 2330150]
    """
    climb = total = 1 / chance
    for _ in range(exclude_after - 1):
        climb = 1 / chance + (1 / chance - 1) * climb
        total += climb
    return total
