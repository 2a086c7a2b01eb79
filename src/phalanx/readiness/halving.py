"""Successive halving with tangents: which transformations get more of the training set."""

from collections.abc import Callable, Mapping

_ETA = 2

Error = Callable[[str, int], float]


def successive_halving(limits: Mapping[str, int], error: Error) -> dict[str, int]:
    """Pulls that each arm gets, so that the arm of the lowest final error is found.

    Rounds of successive halving with doubling budgets, in which an arm is dropped as soon as the
    tangent of its curve says that it cannot be among the better half. When the best arm has no data
    left, every other arm goes on until its tangent says that it cannot beat the best. A tangent is
    the chord over the last half of the pulls: with a convex curve no later error is below it, and
    the arm of the lowest final error is found for certain. Measured curves are convex on average
    only.

    Args:
        limits: pulls that each arm has data for, at least 1.
        error: error of an arm after a number of pulls; earlier pulls are not paid again.

    Source: Renggli, Rimanic, Kolar, Wu, Zhang, "Automatic Feasibility Study via Data Quality
    Analysis for ML", 2023, with the chord in place of the last secant; Jamieson, Talwalkar,
    "Non-stochastic Best Arm Identification", 2016.

    >>> curve = lambda arm, pulls: {"a": 0.2, "b": 0.5}[arm] + 0.3 / pulls
    >>> successive_halving({"a": 20, "b": 20}, curve)
    {'a': 20, 'b': 6}
    """
    pulls = dict.fromkeys(limits, 0)
    live, budget = list(limits), len(limits)
    while live:
        leader = _halve(live, budget, pulls, limits, error)
        exhausted = [arm for arm in live if pulls[arm] == limits[arm]]
        if leader in exhausted:
            break
        live = [arm for arm in live if arm not in exhausted]
        budget *= 2
    for arm in limits:
        while pulls[arm] < limits[arm]:
            done = [error(one, pulls[one]) for one in limits if pulls[one] == limits[one]]
            best = min(done, default=float("inf"))
            if pulls[arm] >= 2 and lower_tangent(arm, pulls[arm], limits[arm], error) > best:
                break
            pulls[arm] += 1
            error(arm, pulls[arm])
    return pulls


def lower_tangent(arm: str, pulls: int, later: int, error: Error) -> float:
    """Error below which a convex curve cannot fall by `later` pulls, seen the first `pulls`."""
    half = max(1, pulls // 2)
    slope = max(0.0, error(arm, half) - error(arm, pulls)) / (pulls - half)
    return error(arm, pulls) - slope * (later - pulls)


def _halve(
    live: list[str], budget: int, pulls: dict[str, int], limits: Mapping[str, int], error: Error
) -> str | None:
    """One call of successive halving; the best arm, None if the budget is for no pull."""
    rounds = max(1, (len(live) - 1).bit_length())
    alive, reached = list(live), 0
    for _ in range(rounds):
        step = budget // (len(alive) * rounds)
        if step == 0:
            return None
        keep = max(1, len(alive) // _ETA)
        dropped: set[str] = set()
        for arm in alive:
            goal = min(reached + step, limits[arm])
            others = sorted(
                error(one, min(goal, pulls[one])) for one in alive if one != arm and pulls[one]
            )
            while pulls[arm] < goal:
                enough = len(others) >= keep and len(alive) - len(dropped) > keep
                bar = others[keep - 1] if enough else float("inf")
                if pulls[arm] >= 2 and lower_tangent(arm, pulls[arm], goal, error) > bar:
                    dropped.add(arm)
                    break
                pulls[arm] += 1
                error(arm, pulls[arm])
        reached += step
        alive = sorted(
            (arm for arm in alive if arm not in dropped), key=lambda arm: error(arm, pulls[arm])
        )[:keep]
        if any(pulls[arm] == limits[arm] for arm in alive):
            break
    return alive[0]
