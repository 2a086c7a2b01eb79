"""Bandwidths and time spans with their units, as people write them."""

import re
from collections.abc import Mapping

_RATES = {
    prefix + unit: scale
    for prefix, scale in {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}.items()
    for unit in ("bit", "bit/s", "bps")
}
_SPANS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def bits_per_second(text: str, name: str = "link") -> float:
    """A bandwidth as `tc` writes it.

    Args:
        text: a number and its unit.
        name: of the argument, for the error.

    Raises:
        ValueError: if it is none, or 0.

    >>> bits_per_second("100mbit"), bits_per_second("2.5gbit")
    (100000000.0, 2500000000.0)
    """
    if not (rate := _value(text, _RATES)):
        raise ValueError(f"{name} must be a bandwidth such as 100mbit or 2.5gbit, got {text!r}")
    return rate


def seconds(text: str, name: str = "latency") -> float:
    """A time span with its unit: s, ms or us.

    Args:
        text: a number and its unit.
        name: of the argument, for the error.

    Raises:
        ValueError: if it is none.

    >>> seconds("1ms"), seconds("0.2s")
    (0.001, 0.2)
    """
    if (span := _value(text, _SPANS)) is None:
        raise ValueError(f"{name} must be a time span such as 1ms or 0.2s, got {text!r}")
    return span


def _value(text: str, units: Mapping[str, float]) -> float | None:
    """The number times its unit; None if the text is no number with one of these units."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z/]+)", text.strip().lower())
    return float(found[1]) * units[found[2]] if found and found[2] in units else None
