"""Privacy accountant of subsampled Gaussian mechanisms: epsilon of what was composed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from phalanx.checks import (
    require_at_least,
    require_finite_above,
    require_finite_at_least,
    require_one_of,
    require_share,
)
from phalanx.errors import LedgerError
from phalanx.privacy.epsilon import Method, composed_epsilon

Relation = Literal["add or remove", "replace"]

NOT_COUNTED = ("choice of hyper-parameters", "statistics used for normalisation")
"""What looks at the private data outside of the mechanism, in most trainings."""

SMALLEST_DELTA = 1e-10  # below it, the rounding of Fourier transforms is no longer negligible


@dataclass(frozen=True)
class Budget:
    """Privacy budget: what all releases together may spend.

    >>> from phalanx.privacy import Budget
    >>> Budget(epsilon=3.0, delta=1e-6)
    Budget(epsilon=3.0, delta=1e-06)
    """

    epsilon: float = 1.0
    """Bound on the logarithm of the ratio of probabilities, but for events of `delta`."""

    delta: float = 1e-5
    """Probability with which the ratio may be larger; well below one over the number of records."""

    def __post_init__(self) -> None:
        require_finite_above(0, epsilon=self.epsilon)
        require_delta(self.delta)


class Accountant:
    """Ledger of Gaussian mechanisms, and the differential privacy of their composition.

    A release adds Gaussian noise of standard deviation `noise_multiplier` times the Euclidean
    sensitivity of what is released. With a `sampling_rate` q below 1 it is computed from a Poisson
    sample: every record (or client) takes part with probability q, independently of all others and
    of other releases. Batches of a fixed size, or of a shuffled data set, are another mechanism,
    for which these figures do not hold.

    Epsilon comes from Google's dp-accounting, but for releases without sampling, whose curves are
    formulas. `"pld"` composes privacy loss distributions, rounded
    so that epsilon is never too small, for adding and for removing alike; `"rdp"` adds up Renyi
    divergences, is looser by 10 to 30 % and holds for parameters chosen as the releases go on,
    too, and for discrete Gaussian noise without sampling. (Privacy loss distributions hold if the
    sequence of parameters was fixed beforehand.)

    Needs `pip install 'phalanx[private]'` where there is sampling.

    Args:
        unit: whose data are protected, such as `"record"` or `"client"`; it is told with every
            epsilon.
        relation: which data sets are neighbours: `"add or remove"` one unit, or `"replace"` one by
            another. The sensitivity behind a `noise_multiplier` is that under this relation.
            Sampling needs the former.
        method: how epsilon is computed.
        not_counted: what else looks at private data, told with every epsilon.

    Cost: a composition of privacy loss distributions takes a second, and is remembered.
    Source: Doroshenko, Ghazi, Kamath, Kumar and Manurangsi, "Connect the Dots: Tighter Discrete
    Approximations of Privacy Loss Distributions", PETS 2022; Mironov, Talwar and Zhang, "Renyi
    Differential Privacy of the Sampled Gaussian Mechanism", arXiv 1908.10530, 2019; Balle, Barthe,
    Gaboardi, Hsu and Sato, "Hypothesis Testing Interpretations and Renyi Differential Privacy",
    AISTATS 2020 (the conversion); Canonne, Kamath and Steinke, "The Discrete Gaussian for
    Differential Privacy", NeurIPS 2020 (the same, proposition 12); Balle and Wang, "Improving the
    Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal Denoising", ICML
    2018.

    >>> from phalanx.privacy import Accountant, Budget
    >>> accountant = Accountant()
    >>> accountant.epsilon(delta=1e-5)
    0.0
    >>> accountant.compose(noise_multiplier=20.0)
    >>> round(accountant.epsilon(delta=1e-5), 3)
    0.16
    """

    def __init__(
        self,
        unit: str = "record",
        relation: Relation = "add or remove",
        method: Method = "pld",
        not_counted: Sequence[str] = NOT_COUNTED,
    ) -> None:
        require_one_of(("add or remove", "replace"), relation=relation)
        require_one_of(("pld", "rdp"), method=method)
        self.unit = unit
        self.relation = relation
        self.method = method
        self.not_counted = tuple(not_counted)
        self._steps: dict[tuple[float, float], int] = {}
        self._within: dict[tuple[Any, ...], tuple[int, float]] = {}

    @property
    def events(self) -> list[tuple[float, float, int]]:
        """What was composed: `(noise_multiplier, sampling_rate, steps)`, equal ones together."""
        return [(*event, steps) for event, steps in sorted(self._steps.items())]

    @property
    def num_steps(self) -> int:
        """Releases in all."""
        return sum(self._steps.values())

    def compose(self, noise_multiplier: float, sampling_rate: float = 1.0, steps: int = 1) -> None:
        """Adds releases.

        Raises:
            ValueError: if an argument is out of its range, or the relation allows no sampling.
        """
        event = self._checked(noise_multiplier, sampling_rate, steps)
        if steps:
            self._steps[event] = self._steps.get(event, 0) + steps

    def epsilon(self, delta: float) -> float:
        """Epsilon of all releases so far, an upper bound; infinite without noise.

        Raises:
            ValueError: if `delta` is not at least 1e-10 and below 1.
            ImportError: if dp-accounting is needed and not installed.
        """
        require_delta(delta)
        return composed_epsilon(tuple(self.events), delta, self.method)

    def would_exceed(
        self, budget: Budget, noise_multiplier: float, sampling_rate: float = 1.0, steps: int = 1
    ) -> bool:
        """Whether these releases on top of those so far would exceed the budget.

        Asked for several, it composes them; asked for one, as before every step of a run, it looks
        once for how many the budget lasts, which costs some ten compositions, and remembers it.
        """
        if steps == 1:
            return self.steps_within(budget, noise_multiplier, sampling_rate) < 1
        event = self._checked(noise_multiplier, sampling_rate, steps)
        events = {**self._steps, event: self._steps.get(event, 0) + steps}
        composed = tuple(sorted((*one, number) for one, number in events.items() if number))
        return composed_epsilon(composed, budget.delta, self.method) > budget.epsilon

    def steps_within(
        self,
        budget: Budget,
        noise_multiplier: float,
        sampling_rate: float = 1.0,
        at_least: int = 1,
    ) -> int:
        """How many such releases the budget still allows.

        Args:
            budget: that of all releases, with those so far.
            noise_multiplier: see `Accountant`.
            sampling_rate: see `Accountant`.
            at_least: releases of interest; the search ends at twice as many or at 2^20, whichever
                is more, if the budget lasts that long.
        """
        event = self._checked(noise_multiplier, sampling_rate, at_least)
        rest = tuple(one for one in self.events if (one[0], one[1]) != event)
        done = self._steps.get(event, 0)
        key = (budget, event, rest)
        allowed, looked = self._within.get(key, (-1, 0.0))
        if looked < done + at_least:
            limit = 2 * max(done + at_least, 2**19)
            allowed = self._search(budget, event, rest, limit)
            looked = limit if allowed == limit else math.inf
            self._within[key] = (allowed, looked)
        return max(allowed - done, 0)

    def statement(self, delta: float) -> str:
        """Epsilon with all that it depends on, as a sentence for people."""
        return describe(self.epsilon(delta), delta, self.unit, self.relation, self.not_counted)

    def state_dict(self) -> dict[str, Any]:
        """The ledger as plain values that JSON can hold."""
        return {
            "unit": self.unit,
            "relation": self.relation,
            "method": self.method,
            "not_counted": list(self.not_counted),
            "events": [list(event) for event in self.events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a ledger; nothing changes if it is refused.

        Raises:
            LedgerError: if it is damaged, or about another unit, relation or method.
        """
        expected = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(expected):
            raise LedgerError(f"the ledger must have the entries {sorted(expected)}, got {state!r}")
        for name in ("unit", "relation", "method", "not_counted"):
            if state[name] != expected[name]:
                raise LedgerError(
                    f"the ledger's {name} must be {expected[name]!r}, got {state[name]!r}"
                )
        read = Accountant(self.unit, self.relation, self.method)
        try:
            for noise_multiplier, sampling_rate, steps in state["events"]:
                if type(steps) is not int or steps < 1:
                    raise ValueError(f"steps must be a whole number above 0, got {steps!r}")
                read.compose(float(noise_multiplier), float(sampling_rate), steps)
        except (TypeError, ValueError) as error:
            raise LedgerError(f"the ledger's events are damaged: {error}") from error
        self._steps = read._steps

    def _checked(
        self, noise_multiplier: float, sampling_rate: float, steps: int
    ) -> tuple[float, float]:
        require_finite_at_least(0, noise_multiplier=noise_multiplier)
        require_share(sampling_rate=sampling_rate)
        require_at_least(0, steps=steps)
        if self.relation == "replace" and sampling_rate < 1:
            raise ValueError(
                "sampling_rate must be 1 where neighbours replace one "
                f"{self.unit} by another, got {sampling_rate}"
            )
        return float(noise_multiplier), float(sampling_rate)

    def _search(
        self,
        budget: Budget,
        event: tuple[float, float],
        rest: tuple[tuple[float, float, int], ...],
        limit: int,
    ) -> int:
        """The most releases of an event that go with the rest, up to a limit; -1: not even none."""

        def gap(steps: int) -> float:
            events = (*rest, (*event, steps)) if steps else rest
            return (
                composed_epsilon(tuple(sorted(events)), budget.delta, self.method) - budget.epsilon
            )

        if gap(0) > 0:
            return -1
        if gap(1) > 0:
            return 0
        high = 1
        while gap(high) <= 0:
            if high == limit:
                return limit
            high = min(8 * high, limit)
        steps = round(math.exp(_root(lambda x: gap(round(math.exp(x))), 0.0, math.log(high), 1e-7)))
        while gap(steps) > 0:
            steps -= 1
        while gap(steps + 1) <= 0:
            steps += 1
        return steps


def noise_multiplier_for(
    budget: Budget, sampling_rate: float = 1.0, steps: int = 1, method: Method = "pld"
) -> float:
    """The least noise multiplier, to a relative 1e-4, with which so many releases fit a budget.

    Never too small: what is returned was composed, and is within the budget.

    Raises:
        ValueError: if an argument is out of its range, or no multiplier up to 10^6 will do.

    Cost: about 10 compositions, a second each.

    >>> from phalanx.privacy import Budget, noise_multiplier_for
    >>> noise_multiplier_for(Budget(epsilon=2.0, delta=1e-5), steps=0)
    0.0
    """
    require_share(sampling_rate=sampling_rate)
    require_at_least(0, steps=steps)
    if not steps:
        return 0.0

    def gap(noise_multiplier: float, by: Method = method) -> float:
        events = ((noise_multiplier, float(sampling_rate), steps),)
        return composed_epsilon(events, budget.delta, by) - budget.epsilon

    coarse: Method = "rdp" if sampling_rate < 1 else method  # the bracket is found fast
    high = 1.0
    while gap(high, coarse) > 0:
        high *= 4
        if high > 1e6:
            raise ValueError(f"budget must be attainable by a multiplier of 10^6, got {budget}")
    while gap(high / 1.5, coarse) <= 0:
        high /= 1.5
    low = high / 1.5
    while gap(low) <= 0:  # the tighter epsilon needs less noise
        low, high = low / 1.5, low
    found = math.exp(_root(lambda x: gap(math.exp(x)), math.log(low), math.log(high), 2e-5))
    while gap(found) > 0:
        found *= 1 + 2e-5
    return found


def describe(
    epsilon: float, delta: float, unit: str, relation: str, not_counted: Sequence[str]
) -> str:
    """An epsilon with all that it depends on, as a sentence."""
    listed = ", ".join(not_counted) or "nothing"
    return (
        f"({epsilon:.4g}, {delta:g})-differential privacy; neighbours {relation} one {unit}; "
        f"not counted: {listed}"
    )


def require_delta(delta: float) -> None:
    """Raises a `ValueError` unless a delta can be accounted for."""
    if not SMALLEST_DELTA <= delta < 1:
        raise ValueError(f"delta must be at least {SMALLEST_DELTA} and below 1, got {delta}")


def _root(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where a monotone function changes its sign; infinite values count as large ones."""
    from scipy.optimize import brentq  # here, as `--help` must not wait for it

    found = brentq(lambda x: min(function(x), 1e6), low, high, xtol=tolerance)
    return float(found)
