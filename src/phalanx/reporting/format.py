"""Number formatting, the same in the terminal and in reports."""

import math
from collections.abc import Sequence


def percent(share: float | None) -> str:
    """A share as percent.

    >>> percent(0.9644)
    '96.4 %'
    """
    return "—" if share is None else f"{100 * share:.1f} %"


def difference(value: float | None) -> str:
    """A weight difference.

    >>> difference(3.14e-7), difference(0.0), difference(float("inf")), difference(2.5)
    ('3.1e-7', '0', 'not finite', '2.5')
    """
    if value is None:
        return "—"
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-2 <= value < 1e4:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def duration(seconds: float | None) -> str:
    """A time span.

    >>> duration(0.0123), duration(4.0), duration(0.0000123)
    ('12.3 ms', '4.00 s', '0.012 ms')
    """
    if seconds is None:
        return "—"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e3 * seconds:.3f} ms"


def size(num_bytes: float | int | None) -> str:
    """A number of bytes.

    >>> size(5_200_000.0), size(830.0), size(None)
    ('5.2 MB', '830 B', '—')
    """
    if num_bytes is None:
        return "—"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def score(value: float | None) -> str:
    """A precision or recall; only what is whole reads 1.00.

    >>> score(1.0), score(0.999), score(2 / 3), score(None)
    ('1.00', '0.99', '0.67', '—')
    """
    if value is None:
        return "—"
    return f"{value if value == 1 else min(value, 0.99):.2f}"


def listed(items: Sequence[str]) -> str:
    """An enumeration.

    >>> listed(["Mean", "Krum", "MDA"])
    'Mean, Krum and MDA'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "round"), count(60, "round")
    ('1 round', '60 rounds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def excerpt(message: str, length: int = 160) -> str:
    """A message on one line, cut where it is long, to stand inside a sentence.

    >>> excerpt("5 of 15 workers are bad.")
    '5 of 15 workers are bad'
    """
    line = " ".join(message.split()).rstrip(".")
    return line if len(line) <= length else line[: length - 1] + "…"
