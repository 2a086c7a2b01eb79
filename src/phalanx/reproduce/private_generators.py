"""Runs of the recipe on private generators, and the steps that a budget lasts for."""

import math
from collections.abc import Mapping
from functools import cache

from phalanx.data import Digits
from phalanx.experiments import load
from phalanx.privacy import (
    Budget,
    Domain,
    PrivateData,
    Synthesizer,
    audit_membership,
    composed_gaussian_epsilon,
    downstream_accuracy,
    generate,
    hold_out_pairs,
    read_private,
    top_agg_rdp,
    top_agg_sensitivity,
)

DELTA = 1e-5
BATCH = 30
"""Images on which the teachers vote in a step."""


def generation_run(
    path: str | None, method: Synthesizer, epsilon: float, pairs: int, samples: int, seed: int
) -> Mapping[str, float]:
    """Fits a generator; accuracy of a classifier of its samples, and a membership audit."""
    data = _digits() if path is None else _images(path)
    used, coins = hold_out_pairs(data, pairs, seed)
    found = generate(used, method, Budget(epsilon, DELTA), seed=seed)
    x, y = found.sample(samples)
    audit = audit_membership(data, coins, x, y, delta=DELTA)
    return {
        "accuracy": downstream_accuracy(x, y, data, seed),
        "spent": found.epsilon,
        "steps": found.steps,
        "bound": audit.epsilon,
        "claim": found.epsilon * (1 if method.relation == "replace" else 2),
    }


@cache
def _images(path: str) -> PrivateData:
    return read_private(path, classes=range(10))


def _digits() -> PrivateData:
    splits = load(Digits())
    (x, y), (test, labels) = splits.train[:], splits.test[:]
    low, high = float(x.min()), float(x.max())
    domain = Domain(tuple(range(10)), shape=(1, 8, 8), low=low, high=high)
    first, second = domain.encode(x.numpy()), domain.encode(test.numpy())
    return PrivateData(first, y, domain, second, labels)


def published_steps(k: int, noise_std: float, epsilon: float) -> int:
    """Steps until epsilon by the classic conversion over the authors' orders."""
    orders, steps = (1.1, *range(2, 200)), 0
    while True:
        spent = [top_agg_rdp(a, k, noise_std, BATCH * (steps + 1)) for a in orders]
        told = (s - math.log(DELTA) / (a - 1) for s, a in zip(spent, orders, strict=True))
        if min(told) > epsilon:
            return steps
        steps += 1


def exact_steps(k: int, noise_std: float, epsilon: float) -> int:
    """Steps until epsilon by the exact composition of Gaussian releases."""
    noise, steps = noise_std / top_agg_sensitivity(k), 0
    while composed_gaussian_epsilon(noise, BATCH * (steps + 1), DELTA) <= epsilon:
        steps += 1
    return steps
