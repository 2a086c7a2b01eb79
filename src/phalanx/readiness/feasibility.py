"""Verdict of a feasibility study: whether a target accuracy can be reached, and what would help."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from phalanx.checks import require_at_least, require_finite_at_least
from phalanx.readiness.bayes_error.cover_hart import (
    chance_error,
    clopper_pearson,
    cover_hart,
    inverse_cover_hart,
)

Verdict = Literal["REALISTIC", "UNREALISTIC"]

ASYMPTOTIC = (
    "The estimate bounds the best error from below only as training rows grow without limit. With "
    "few rows it is too high (a false UNREALISTIC: look whether the curve still falls); a "
    "transformation that loses information makes it too high as well; and with many rows it may be "
    "as low as half of the best error (a false REALISTIC)."
)
"""What every report says of its verdict."""


@dataclass(frozen=True)
class Curve:
    """Estimates under one transformation as training rows are added."""

    transformation: str
    """Its name."""

    dimension: int
    """Features that it gives."""

    sizes: tuple[int, ...]
    """Training rows after each pull."""

    errors: tuple[float, ...]
    """Error of the nearest neighbour on the test rows."""

    bayes_errors: tuple[float, ...]
    """The same through the Cover-Hart map."""

    interval: tuple[float, float]
    """Interval of the last of them; those of all transformations hold together with 95 %."""

    exhausted: bool
    """Whether there are no more rows."""

    seconds: float
    """Time that it took."""


@dataclass(frozen=True)
class Prices:
    """What labels and failures cost, in one currency."""

    label: float = 0.02
    """To look at one label, and to mend it if it is wrong."""

    failure: float = 100.0
    """To train and to miss the target."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, label=self.label, failure=self.failure)


@dataclass(frozen=True)
class Feasibility:
    """Answer of a feasibility study."""

    verdict: Verdict
    """REALISTIC if the allowed error is at least the estimate, else UNREALISTIC."""

    unclear: tuple[str, ...]
    """Why the verdict is not yet clear, in sentences; empty if it is."""

    target_accuracy: float
    """The target."""

    bayes_error: float
    """Estimate of the best possible error: the smallest over the transformations."""

    interval: tuple[float, float]
    """95 % interval of the estimate, given the training rows; not of the Bayes error."""

    transformation: str
    """The one that gave the estimate."""

    curves: tuple[Curve, ...]
    """One for each transformation that was looked at."""

    samples_needed: int | None
    """Training rows with which the curve would meet the target; None if it does, or cannot say."""

    wrong_labels: int | None
    """Wrong labels to mend at least, if wrong labels are all that is in the way; None if it is
    met."""

    labels_to_check: int | None
    """Labels to look at to find so many, in a random order."""

    cleaning_cost: float | None
    """What that costs."""

    failure_cost: float
    """What training costs that misses the target."""

    findings: tuple[str, ...]
    """What makes the estimate misleading."""

    stopped: str
    """Why the study ended: finished, interrupted, out of time, or waiting for `run`."""

    @property
    def clear(self) -> bool:
        """Whether nothing speaks against the verdict but the limits that `ASYMPTOTIC` tells."""
        return not self.unclear

    @property
    def advice(self) -> list[str]:
        """What to do, in sentences."""
        said = [f"Not yet clear: {one}" for one in self.unclear]
        if self.verdict == "REALISTIC":
            nearest = min(one.errors[-1] for one in self.curves)
            said.append(
                "The nearest neighbour itself reaches the target on the test rows."
                if 1 - self.target_accuracy >= nearest
                else f"The nearest neighbour itself has an error of {nearest:.2%}: the target is "
                "between that and what it bounds."
            )
            return [*said, ASYMPTOTIC]
        if self.samples_needed is not None:
            said.append(
                f"If the error goes on falling as it did, about {self.samples_needed:,} training "
                "rows would do."
            )
        else:
            said.append("The curve does not say that more rows of this kind would do.")
        if self.wrong_labels is not None:
            said.append(
                f"If uniformly wrong labels are all that is in the way, at least "
                f"{self.wrong_labels:,} of them must be mended: look at about "
                f"{self.labels_to_check:,} labels, for {self.cleaning_cost:,.2f}; a training that "
                f"misses the target costs {self.failure_cost:,.2f}."
            )
        return [*said, ASYMPTOTIC]

    @property
    def answer(self) -> str:
        """The verdict in a sentence."""
        low, high = self.interval
        unclear = "" if self.clear else ", not yet clear"
        return (
            f"{self.verdict}{unclear}: a target accuracy of {self.target_accuracy:.2%} allows an "
            f"error of {1 - self.target_accuracy:.2%}, and the best possible one is estimated at "
            f"{self.bayes_error:.2%} ({low:.2%} to {high:.2%}), by {self.transformation}."
        )


def curve(
    name: str,
    dimension: int,
    sizes: tuple[int, ...],
    errors: tuple[float, ...],
    num_test: int,
    num_classes: int,
    num_curves: int,
    exhausted: bool,
    seconds: float,
) -> Curve:
    """The curve of a transformation; its interval pays for being the best of `num_curves`."""
    mapped = cover_hart(errors, num_classes)
    confidence = 1 - 0.05 / num_curves
    ends = clopper_pearson(round(errors[-1] * num_test), num_test, confidence)
    low, high = cover_hart(ends, num_classes)
    return Curve(
        name,
        dimension,
        sizes,
        errors,
        tuple(mapped.tolist()),
        (float(low), float(high)),
        exhausted,
        seconds,
    )


def feasibility(
    curves: tuple[Curve, ...],
    target_accuracy: float,
    num_classes: int,
    num_labels: int,
    findings: tuple[str, ...] = (),
    stopped: str = "finished",
    prices: Prices = Prices(),
    without_duplicates: float | None = None,
) -> Feasibility:
    """The answer from the curves of all transformations.

    The estimate is the smallest over the transformations, since none can make the best possible
    error smaller. The interval is from the smallest lower to the smallest upper end.

    Args:
        curves: at least one.
        target_accuracy: in [0, 1].
        num_classes: classes that there are.
        num_labels: labels of training and test rows together.
        findings: what makes the estimate misleading.
        stopped: why the study ended.
        prices: what labels and failures cost.
        without_duplicates: the estimate on test rows that are no training rows; None if there are
            none.
    """
    require_at_least(1, num_curves=len(curves))
    best = min(curves, key=lambda one: one.bayes_errors[-1])
    estimate = best.bayes_errors[-1]
    interval = min(one.interval[0] for one in curves), min(one.interval[1] for one in curves)
    allowed = 1 - target_accuracy
    met = allowed >= estimate
    needed = None if met else samples_needed(best, allowed, num_classes)
    unclear = []
    if interval[0] <= allowed < interval[1]:
        unclear.append("the target is within the interval of the estimate.")
    if stopped != "finished":
        unclear.append(f"the study is not complete ({stopped}).")
    if needed is not None:
        unclear.append("the estimate still falls, and more rows may turn the verdict.")
    if without_duplicates is not None and (allowed >= without_duplicates) != met:
        unclear.append(
            "on test rows that are no training rows the estimate is "
            f"{without_duplicates:.2%}, which turns the verdict."
        )
    wrong = checks = None
    if not met:
        wrong, checks = _labels(estimate, allowed, num_classes, num_labels)
    return Feasibility(
        "REALISTIC" if met else "UNREALISTIC",
        tuple(unclear),
        target_accuracy,
        estimate,
        interval,
        best.transformation,
        curves,
        needed,
        wrong,
        checks,
        None if checks is None else checks * prices.label,
        prices.failure,
        findings,
        stopped,
    )


def samples_needed(curve: Curve, allowed: float, num_classes: int) -> int | None:
    """Training rows at which a power law through the last half of a curve meets an error.

    `log e(n) = log c - beta log n` is fitted to the 1NN error; the target is the 1NN error that an
    error `allowed` corresponds to. None if the curve does not fall, or more than ten times the rows
    would be needed: so far no curve can be continued. A power law falls to 0, which a curve with a
    Bayes error does not: the answer is optimistic.
    """
    half = len(curve.sizes) // 2
    sizes, errors = np.array(curve.sizes[half:]), np.array(curve.errors[half:])
    target = float(inverse_cover_hart(allowed, num_classes))
    if len(sizes) < 3 or (errors <= 0).any() or (sizes <= 0).any() or target <= 0:
        return None
    if len(np.unique(sizes)) < 2:
        return None
    slope, start = np.polyfit(np.log(sizes), np.log(errors), 1)
    if slope >= -1e-9:
        return None
    needed = float((np.log(target) - start) / slope)
    if needed > np.log(10 * sizes[-1]):
        return None
    return max(int(np.ceil(np.exp(needed))), int(sizes[-1]) + 1)


def _labels(estimate: float, allowed: float, num_classes: int, num_labels: int) -> tuple[int, int]:
    """Wrong labels to mend at least, and labels to look at, if nothing else is in the way.

    Uniform noise of rate r moves a Bayes error of 0 to `r a`, and makes `r a n` labels wrong. So
    the share of wrong labels must fall from the estimate to what is allowed. Where there is a
    Bayes error besides, there are fewer wrong labels, and mending all of them is not enough.
    """
    chance = chance_error(num_classes)
    now, goal = min(estimate, chance), max(0.0, allowed)
    wrong = int(np.ceil((now - goal) * num_labels - 1e-9))
    return wrong, int(np.ceil((now - goal) / now * num_labels - 1e-9))
