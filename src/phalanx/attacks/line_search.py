"""Line search for the most damaging message against the rule under attack."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.adversary_knowledge import AdversaryKnowledge
from phalanx.attacks.isometry import coordinates
from phalanx.floats import euclidean_norm, power_of_two

_STEP = 10.0  # the first one
_SHRINK = 0.8


def most_damaging(
    view: AdversaryKnowledge,
    start: Float[Tensor, " dim"],
    direction: Float[Tensor, " dim"],
    evaluations: int,
) -> float:
    """The `tau` for which sending `start + tau * direction` does most damage; 0 if nothing helps.

    Damage is the Euclidean distance of the rule's answer from the honest mean, where the honest
    messages come first and `num_byzantine` copies of the forged one after them. Both signs are
    searched, with `evaluations` trials each; the damage is never less than that of `tau = 0`.

    Args:
        view: the honest messages and the rule.
        start: the message for `tau = 0`.
        direction: what is added.
        evaluations: trials per sign, 1 or more.

    Cost: an aggregation per trial; one pass over the messages and `workers x workers` algebra per
    trial for a rule that says that it `needs_distances_only`.
    """
    honest, limit = view.honest, _largest_step(start, direction)
    if getattr(view.aggregate, "needs_distances_only", False) and honest.isfinite().all():
        # The same distances in few coordinates: what is left of a trial is the rule's algebra.
        together = torch.cat([honest, torch.stack([start, start + direction])])
        points = coordinates(together / power_of_two(together))
        honest, start, direction = points[:-2], points[-2], points[-1] - points[-2]
    mean = honest.mean(dim=0).double()
    # One table for all trials: only the forged rows change.
    table = torch.cat([honest, start.expand(view.num_byzantine, -1)])

    def damage(tau: float) -> float:
        if not abs(tau) <= limit:
            return -math.inf  # the server would drop it
        table[len(honest) :] = start + tau * direction
        found = euclidean_norm(view.aggregate(table).double() - mean).item()
        return found if math.isfinite(found) else -math.inf

    at_zero = damage(0.0)
    searches = (line_search(damage, at_zero, sign * _STEP, evaluations) for sign in (1, -1))
    return max(searches, key=lambda found: found[1])[0]


def _largest_step(start: Float[Tensor, " dim"], direction: Float[Tensor, " dim"]) -> float:
    """The largest `tau` for which the message is finite for sure, with either sign."""
    if len(start) == 0:
        return math.inf
    room = torch.finfo(start.dtype).max - start.abs().max().item()
    longest = direction.abs().max().item()
    return room / longest if longest > 0 else math.inf


def line_search(
    gain: Callable[[float], float], at_zero: float, step: float, evaluations: int
) -> tuple[float, float]:
    """The best argument that is found from 0 on in one direction, and its gain.

    The step doubles as long as the gain grows; from the first failure on it shrinks by a fifth
    after every trial.

    >>> tau, gain = line_search(lambda tau: -abs(tau - 37.0), -37.0, 10.0, evaluations=20)
    >>> round(tau, 1)
    43.1

    Args:
        gain: what is to become large.
        at_zero: its value at 0.
        step: the first step; its sign is the direction.
        evaluations: how often `gain` may be asked.
    """
    best, best_gain, growing = 0.0, at_zero, True
    for _ in range(evaluations):
        found = gain(best + step)
        better = found > best_gain
        if better:
            best, best_gain = best + step, found
        growing = growing and better
        step *= 2.0 if growing else _SHRINK
    return best, best_gain
