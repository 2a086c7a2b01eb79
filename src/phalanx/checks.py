"""Range checks of arguments, which name the argument, the rule and the value.

Each takes the arguments by name and raises a `ValueError` for the first that breaks the rule. None
passes: it stands for an argument that was not given.

>>> require_at_least(1, size=0)
Traceback (most recent call last):
ValueError: size must be at least 1, got 0
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

Number = int | float


def require_at_least(bound: Number, /, **values: Number | None) -> None:
    """Every value is at least the bound."""
    _require(lambda value: value >= bound, f"at least {bound}", values)


def require_above(bound: Number, /, **values: Number | None) -> None:
    """Every value is above the bound."""
    _require(lambda value: value > bound, f"above {bound}", values)


def require_finite_at_least(bound: Number, /, **values: Number | None) -> None:
    """Every value is finite and at least the bound."""
    _require(lambda value: bound <= value < math.inf, f"finite and at least {bound}", values)


def require_finite_above(bound: Number, /, **values: Number | None) -> None:
    """Every value is finite and above the bound."""
    _require(lambda value: bound < value < math.inf, f"finite and above {bound}", values)


def require_between(low: Number, high: Number, /, **values: Number | None) -> None:
    """Every value is from low to high, both included."""
    _require(lambda value: low <= value <= high, f"from {low} to {high}", values)


def require_strictly_between(low: Number, high: Number, /, **values: Number | None) -> None:
    """Every value is between low and high, neither included."""
    _require(lambda value: low < value < high, f"between {low} and {high}", values)


def require_below_one(**values: Number | None) -> None:
    """Every value is at least 0 and below 1, as a decay or a relative tolerance is."""
    _require(lambda value: 0 <= value < 1, "at least 0 and below 1", values)


def require_share(**values: Number | None) -> None:
    """Every value is above 0 and at most 1: a part of something, which is not empty."""
    _require(lambda value: 0 < value <= 1, "above 0 and at most 1", values)


def require_one_of(options: Sequence[str], /, **values: str) -> None:
    """Every value is one of the options."""
    listed = [repr(option) for option in options]
    rule = f"{', '.join(listed[:-1])} or {listed[-1]}"
    for name, value in values.items():
        if value not in options:
            raise ValueError(f"{name} must be {rule}, got {value!r}")


def require_minority(num_byzantine: int, num_workers: int) -> None:
    """Fewer than half of the workers are Byzantine, and no fewer than none."""
    require_at_least(0, num_byzantine=num_byzantine)
    if 2 * num_byzantine >= num_workers:
        raise ValueError(
            f"num_byzantine must be below num_workers / 2, got {num_byzantine} of {num_workers}"
        )


def _require(holds: Callable[[Any], bool], rule: str, values: dict[str, Number | None]) -> None:
    for name, value in values.items():
        if value is not None and not holds(value):  # NaN breaks every rule
            raise ValueError(f"{name} must be {rule}, got {value}")
