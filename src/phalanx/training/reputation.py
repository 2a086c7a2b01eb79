"""Reputation: suspicion of every worker over rounds, and permanent exclusion."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from phalanx.checks import require_at_least, require_strictly_between

_MEMORY = 0.9  # of the average: it looks back about ten rounds


class Standing(NamedTuple):
    """Reputation of every worker after some rounds; checkpointed with the run.

    Attributes:
        suspicion: `(workers,)` float64 in [0, 1], the exponential average of being a suspect or an
            outlier.
        counter: `(workers,)` int64, the rounds in which it was a suspect less those held good, as
            `Reputation` counts them.
        evidence: `(workers,)` float64, the statistic of `OutlierTest`.
        excluded: `(workers,)` bool.
    """

    suspicion: Float[Tensor, " workers"]
    counter: Int[Tensor, " workers"]
    evidence: Float[Tensor, " workers"]
    excluded: Bool[Tensor, " workers"]

    @property
    def out(self) -> list[int]:
        """Ids of the excluded."""
        found: list[int] = self.excluded.nonzero().flatten().tolist()
        return found


@dataclass(frozen=True)
class OutlierTest:
    """Exclusion test for the outliers of a rule, with a bounded chance to exclude an honest worker.

    Being an outlier proves nothing: a rule that leaves out k of m messages leaves out honest ones
    with probability k / m without any Byzantine worker, and with up to `k / (m - f)` if f of them
    are Byzantine and hide. So this is a test of *how often*, a cumulative sum (CUSUM) of the
    log-likelihood ratio between two chances of being an outlier, given that k of the m messages of
    a round are:

        p0 = skew k / (m - f)      at most so often is an honest worker,
        p1 = (1 + p0) / 2          and more often a Byzantine one,
        S <- max(0, S + log(p1 / p0))               if the worker is an outlier,
        S <- max(0, S + log((1 - p1) / (1 - p0)))   if it is not.

    Rounds without its message, and those with p0 >= 1, leave S. A worker is excluded once
    `S >= log(n T / false_exclusion)`, n being the workers and T the rounds of the run.

    Guarantee: as long as no honest worker is an outlier with more than the chance p0 in a round,
    whatever was before, the probability that *any* honest worker is excluded in T rounds is at most
    `false_exclusion`. From any round on the likelihood ratio is a supermartingale that begins at 1,
    so that it ever reaches c with probability at most 1 / c (Ville); there are T rounds to begin
    from, and n workers. Rounds need not be independent.

    It does not hold where the assumption does not: a worker whose data are so unlike the others'
    that rules leave it out nearly always looks like a Byzantine one, and Byzantine workers that
    send what lies just so can have a distance rule leave out the honest worker of their choice. No
    test on outliers can tell those apart. `skew` is the room for the first; no more workers than
    the rule tolerates are ever excluded, by it or by proof.

    Source: Page, "Continuous Inspection Schemes", Biometrika 41, 1954 (the test); Lorden,
    "Procedures for Reacting to a Change in Distribution", Annals of Mathematical Statistics 42,
    1971, theorem 2 (the bar); Ville, "Étude critique de la notion de collectif", 1939 (the
    inequality). The null hypothesis from the outliers of a round is this package's.
    """

    false_exclusion: float = 0.01
    """Largest probability that a run excludes any honest worker."""

    skew: float = 2.0
    """How many times as often as the average honest worker one may be an outlier; 1 for workers
    that draw their samples alike, more for data that differ."""

    def __post_init__(self) -> None:
        require_strictly_between(0, 1, false_exclusion=self.false_exclusion)
        require_at_least(1, skew=self.skew)

    def bar(self, num_workers: int, num_rounds: int) -> float:
        """Where S excludes: `log(n T / false_exclusion)`.

        >>> round(OutlierTest(0.01).bar(num_workers=9, num_rounds=1000), 1)
        13.7
        """
        return math.log(num_workers * max(num_rounds, 1) / self.false_exclusion)

    def update(
        self,
        evidence: Float[Tensor, " workers"],
        outliers: Bool[Tensor, " workers"],
        heard: Bool[Tensor, " workers"],
        num_byzantine: int,
    ) -> Float[Tensor, " workers"]:
        """S of every worker after one more round.

        Args:
            evidence: before it.
            outliers: who is one, among those heard.
            heard: whose message the rule judged.
            num_byzantine: how many of these may be Byzantine (f).
        """
        num_honest = int(heard.sum()) - num_byzantine
        chance = self.skew * int(outliers.sum()) / num_honest if num_honest > 0 else 1.0
        if chance >= 1:
            return evidence
        # With p1 = (1 + p0) / 2 the second ratio is one half whatever p0 is.
        up = math.log((1 + chance) / (2 * chance)) if chance else 0.0
        steps = torch.full_like(evidence, -math.log(2)).masked_fill(outliers, up)
        moved = (evidence + steps).clamp(min=0)
        return moved.where(heard, evidence)


@dataclass(frozen=True)
class Reputation:
    """Exclusion policy by the verdicts on every worker: who stays suspected is excluded.

    By proof: a worker's counter goes up by one in a round in which it is a suspect (Byzantine in
    every explanation of the messages within the bound, see `Decoded.suspects`) or its message is
    malformed, and down by one, not below zero, in one in which its message is held good; a round
    without a message leaves it. At `exclude_after` the worker is excluded for good. Within the
    bound no honest worker's counter ever moves, unless its hardware fails it; the count is for
    those: `rounds_until_excluded` says how long a worker stays whose messages are wrong now and
    then.

    By suspicion: outliers of rules count only with an `outlier_test`, which says how likely it is
    that an honest worker is excluded.

    No more than `max_excluded` are ever excluded.

    Source: Page, "Continuous Inspection Schemes", Biometrika 41, 1954 (the cumulative sum).
    """

    exclude_after: int | None = None
    """Where the counter excludes (h); None: nobody is excluded by proof."""

    max_excluded: int = 0
    """Workers that may be excluded in all: as many as the code or rule tolerates."""

    outlier_test: OutlierTest | None = None
    """When outliers are excluded; None: never."""

    num_rounds: int = 1
    """Rounds of the run (T), for the bar of the test."""

    def init(self, num_workers: int) -> Standing:
        """Nobody is under suspicion."""
        nothing = torch.zeros(num_workers, dtype=torch.float64)
        return Standing(
            nothing,
            torch.zeros(num_workers, dtype=torch.int64),
            nothing.clone(),
            torch.zeros(num_workers, dtype=torch.bool),
        )

    def update(
        self,
        standing: Standing,
        suspects: Collection[int],
        arrived: Bool[Tensor, " workers"],
        outliers: Collection[int] = (),
    ) -> Standing:
        """How workers stand after one more round.

        Where more workers are due at once than may be excluded, those by proof go first, then the
        most suspicious, and those of lower id among equals.

        Args:
            standing: before the round.
            suspects: who was named in it, senders of malformed messages among them.
            arrived: whose message was decoded.
            outliers: who was suspected without proof.
        """
        named, doubted = torch.zeros_like(arrived), torch.zeros_like(arrived)
        named[list(suspects)], doubted[list(outliers)] = True, True
        heard = (arrived | named) & ~standing.excluded
        moved = _MEMORY * standing.suspicion + (1 - _MEMORY) * (named | doubted).double()
        counted = (standing.counter + torch.where(named, 1, -1)).clamp(min=0)
        room = self.max_excluded - int(standing.excluded.sum())
        evidence = standing.evidence
        if self.outlier_test is not None:
            judged = heard & ~named
            left = max(room - int((heard & named).sum()), 0)
            evidence = self.outlier_test.update(evidence, doubted & judged, judged, left)
        after = Standing(
            moved.where(heard, standing.suspicion),
            counted.where(heard, standing.counter),
            evidence,
            standing.excluded.clone(),
        )
        proven = torch.zeros_like(arrived)
        if self.exclude_after is not None:
            proven = (after.counter >= self.exclude_after) & ~after.excluded
        due = proven.clone()
        if self.outlier_test is not None:
            bar = self.outlier_test.bar(len(arrived), self.num_rounds)
            due |= (after.evidence >= bar) & ~after.excluded
        order = (after.suspicion + 2 * proven.double()).argsort(descending=True, stable=True)
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
