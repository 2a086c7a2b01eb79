"""Membership-inference audit of a generator: a lower bound on its epsilon."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from phalanx.checks import require_at_least, require_between, require_strictly_between
from phalanx.privacy.generation.private_data import PrivateData
from phalanx.randomness import generator


@dataclass(frozen=True)
class Pairs:
    """Pairs of records, one of which a coin left out."""

    first: Int[Tensor, " m"]
    """Row numbers."""
    second: Int[Tensor, " m"]
    """Row numbers of their partners."""
    coins: Bool[Tensor, " m"]
    """Whether the first is in; the second is in where it is not."""


@dataclass(frozen=True)
class MembershipAudit:
    """What an attacker guessed of who was in the data."""

    num_pairs: int
    """Coins."""
    num_guesses: int
    """Coins that were guessed: the surest ones, so many as were fixed beforehand."""
    num_correct: int
    """Guesses that were right."""
    epsilon: float
    """Lower bound on the epsilon under replacement, at the confidence."""
    confidence: float
    """With which it holds."""


def hold_out_pairs(data: PrivateData, num_pairs: int, seed: int) -> tuple[PrivateData, Pairs]:
    """Leaves one of each of so many pairs out, by coins; returns the rest and the pairs.

    Rows are paired by their number alone: pairs of one class would have a label that changes move
    other records in or out, and break the guarantee of what is fitted on the rest.

    Raises:
        ValueError: if there are not so many pairs.
    """
    require_at_least(1, num_pairs=num_pairs)
    if 2 * num_pairs >= len(data.x):
        raise ValueError(f"audit_pairs must be below {len(data.x) / 2:g}, got {num_pairs}")
    chance = generator(seed, "pairs")
    order = torch.randperm(len(data.x), generator=chance)
    first, second = order[:num_pairs], order[num_pairs : 2 * num_pairs]
    coins = torch.rand(num_pairs, generator=chance) < 0.5
    kept = torch.ones(len(data.x), dtype=torch.bool)
    kept[torch.where(coins, second, first)] = False
    return data.rows(kept.nonzero().flatten()), Pairs(first, second, coins)


def audit_membership(
    data: PrivateData,
    pairs: Pairs,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    *,
    delta: float,
    confidence: float = 0.95,
) -> MembershipAudit:
    """Guesses who was in: of a pair, the record that is closer to a synthetic one of its own class.

    The surer half of the pairs is guessed. A right generator may be audited as leaking less than
    its epsilon, since a stronger attacker may exist; if the bound is above epsilon, the claim is
    false, up to `1 - confidence`.

    Args:
        data: all private records, before pairs were left out.
        pairs: see `hold_out_pairs`.
        x: synthetic records of the generator that saw the rest.
        y: their classes.
        delta: of the claim.
        confidence: of the bound.

    The number of right guesses is no private figure: it does not count as spent, and should not
    be published with the records.

    Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023.
    """
    sure = torch.zeros(len(pairs.first))
    for side, sign in ((pairs.first, -1), (pairs.second, 1)):
        for one in y.unique().tolist():
            here = (data.y[side] == one).nonzero().flatten()
            if len(here):
                near = torch.cdist(data.x[side[here]], x[y == one]).min(dim=1).values
                sure[here] += sign * near
    num_guesses = max(len(sure) // 2, 1)
    guessed = sure.abs().argsort(descending=True, stable=True)[:num_guesses]
    right = int(((sure[guessed] > 0) == pairs.coins[guessed]).sum())
    bound = epsilon_lower_bound(len(sure), num_guesses, right, delta, confidence)
    return MembershipAudit(len(sure), num_guesses, right, bound, confidence)


def epsilon_lower_bound(
    num_coins: int, num_guesses: int, num_correct: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon that so many right guesses refute.

    Under (epsilon, delta)-privacy the number of right guesses is at most about
    `Binomial(num_guesses, e^epsilon / (1 + e^epsilon))`.

    Raises:
        ValueError: if more are correct than guessed, or guessed than there are coins.

    Source: Steinke, Nasr, Jagielski, NeurIPS 2023, theorem 5.2 and appendix D.

    >>> from phalanx.privacy import epsilon_lower_bound
    >>> epsilon_lower_bound(100, 100, 50, delta=0.0)
    0.0
    >>> round(epsilon_lower_bound(100, 100, 100, delta=0.0), 2)
    3.49
    """
    from scipy.stats import binom  # here, as `--help` must not wait for it

    require_between(0, num_coins, num_guesses=num_guesses)
    require_between(0, num_guesses, num_correct=num_correct)
    require_strictly_between(0, 1, confidence=confidence)

    def p_value(epsilon: float) -> float:
        q = 1 / (1 + math.exp(-epsilon))
        tail = float(binom.sf(num_correct - 1, num_guesses, q))
        below = binom.pmf(range(num_correct - 1, -1, -1), num_guesses, q).cumsum()
        worst = max((total / i for i, total in enumerate(below, start=1)), default=0.0)
        return min(1.0, tail + 2 * num_coins * delta * float(worst))

    low, high = 0.0, 30.0
    if p_value(0.0) > 1 - confidence:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) <= 1 - confidence else (low, middle)
    return low
