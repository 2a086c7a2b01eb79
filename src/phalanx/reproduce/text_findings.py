"""What activation compression does to fine-tuning, to time and in theory: claims and tables."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from phalanx.experiments import Record, Records, pivot
from phalanx.reproduce.base import Findings, report, words
from phalanx.reproduce.compression_theory import fewest_bits, relative_error_bound

DIRECT, DIFFERENCES, NOTHING, ALL = "direct", "differences", "nothing compressed", "all three"
BITS = ((2, 4), (3, 6), (4, 8))  # forward and backward
CLASSIFIED = "types of questions"


def method_name(method: str, bits: int, back: int) -> str:
    """What a record calls a method with these bits forward and backward."""
    return f"{method}, {bits} and {back} bits"


def percentage(one: Record) -> float | None:
    """Test accuracy; None if numbers of a run were not finite."""
    share: float | None = one["test_accuracy"]
    return None if share is None else 100 * share


_COLUMNS: dict[str, Any] = {
    "test loss": "test_loss",
    "test accuracy, %": percentage,
    "MB of activations": lambda one: one["boundary_bytes"] / 1e6,
    "MB of gradients of replicas": lambda one: (
        one["gradient_bytes"] and one["gradient_bytes"] / 1e6
    ),
    "error of activations": "error",
}


def text_findings(told: Mapping[str, Any], found: Records) -> Findings:
    """The claims about fine-tuned language models, beside what was measured.

    A method costs something if its loss (or, of a classifier, its errors) is above that without
    compression by more than two standard errors of the difference, seed by seed.
    """
    groups = {
        DIFFERENCES: [method_name(DIFFERENCES, *bits) for bits in BITS],
        DIRECT: [method_name(DIRECT, *bits) for bits in BITS],
        ALL: [ALL],
    }
    holds: dict[str, list[bool]] = {name: [] for name in groups}
    shown: dict[str, list[str]] = {name: [] for name in groups}
    tables = Findings("", [])
    for task in map(str, found.labels("task")):
        some = found.where(task=task)
        ended = pivot(some, "method", None, _COLUMNS)
        values = {"task": task.capitalize(), "epochs": len(some[0]["errors"])}
        tables += report(told, {}, values, {"texts": ended})
        for name, methods in groups.items():
            for place, method in enumerate(methods):
                if name == DIRECT:  # compared with as many bits of differences
                    other, least = groups[DIFFERENCES][place], 0.0
                    holds[name].append(_worse(some, task, method, other)[0] > least)
                else:
                    mean, error = _worse(some, task, method, NOTHING)
                    holds[name].append(mean <= 2 * error)
            losses, shares = (
                [ended[one, header] for one in methods] for header in list(_COLUMNS)[:2]
            )
            exact, share = (ended[NOTHING, header] for header in list(_COLUMNS)[:2])
            values = {"task": task, "losses": losses, "shares": shares}
            values |= {"exact": exact, "share": share}
            shown[name].append(words(told["text"], values))
        crossed = [some.mean("boundary_bytes", method=one) for one in (NOTHING, ALL)]
        shown[ALL][-1] += words(told["fewer"], {"fewer": crossed[0] / max(crossed[1], 1)})
    claims = {f"texts, {name}": one for name, one in holds.items()}
    values = {"shown": {name: ". ".join(one) for name, one in shown.items()}}
    return report(told, claims, values) + tables


def _worse(some: Records, task: str, method: str, other: str) -> tuple[float, float]:
    """By how much a method costs more than another, on average over seeds; its standard error."""

    def cost(one: Record) -> float:
        if one["test_accuracy"] is None:
            return math.inf
        return -float(one["test_accuracy"]) if task == CLASSIFIED else float(one["test_loss"])

    apart = []
    for one in some.where(method=method):
        ours, theirs = cost(one), cost(some.where(method=other, seed=one["seed"])[0])
        apart.append(math.inf if ours == math.inf else ours - theirs)
    if math.inf in apart or len(apart) < 2:
        return fmean(apart), 0.0
    return fmean(apart), stdev(apart) / math.sqrt(len(apart))


def link_findings(told: Mapping[str, Any], found: Records) -> Findings:
    """Seconds of a step over slow links, with and without compression."""
    rates = [str(one) for one in found.labels("rate")]
    methods = [str(one) for one in found.labels("method")]
    seconds = pivot(found, "method", "rate", "seconds")
    gains = {
        rate: max(seconds[NOTHING, rate] / seconds[one, rate] for one in methods if one != NOTHING)
        for rate in rates
    }
    values = {
        "gains": gains,
        "how": told["emulated" if all(one["emulated"] for one in found) else "computed"],
    }
    faster = [one > 1 for one in gains.values()]
    return report(told, {"time": faster}, values, {"links": seconds})


def theory_findings(told: Mapping[str, Any], rates: Records, errors: Records) -> Findings:
    """The rate of convergence, and for which bits the theorem's condition holds."""
    curves: dict[str, tuple[Sequence[int], list[float | None]]] = {}
    for method in map(str, rates.labels("method")):
        runs = rates.where(method=method)
        steps = sorted({one["steps"] for one in runs})
        curves[method] = steps, [runs.mean("squared gradient", steps=one) for one in steps]
    scaled = {
        name: [value and value * math.sqrt(step) for step, value in zip(*curve, strict=True)]
        for name, curve in curves.items()
    }
    ours = [name for name in curves if name.startswith(DIFFERENCES)]
    dim = errors[0]["numbers"]
    values = {
        "scaled": scaled,
        "steps": next(iter(curves.values()))[0],
        "dim": dim,
        "bounds": {f"{bits} bits": relative_error_bound(dim, bits) for bits, _ in BITS},
        "errors": {f"{one['bits']} bits": one["error"] for one in errors},
        "fewest": fewest_bits(dim),
    }
    holds = {
        "rate": [_bounded(scaled[name]) for name in ours],
        "condition": [relative_error_bound(dim, bits) < math.sqrt(0.5) for bits, _ in BITS],
    }
    return report(told, holds, values, {"condition": errors}, {"rate": curves})


def _bounded(scaled: Sequence[float | None]) -> bool:
    """Whether the last is no larger than the largest before; not if a run diverged."""
    values = [one for one in scaled if one is not None]
    return len(values) == len(scaled) > 1 and values[-1] <= max(values[:-1])
