"""Labels: short distinct names for the rows and columns of a table."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from typing import Any

from phalanx.aggregation import Pipeline

_LONG = 3  # words from which on a name is written by its initials
_KNOWN = ("phalanx.aggregation.", "phalanx.attacks.")  # where the initials are known as names


def labels(things: Sequence[Any], usual: dict[str, Any] | None = None) -> list[str]:
    """One short name for each thing, no two alike.

    Names of rules and attacks with three or more words are written by their initials, as the field
    does. Of the fields only those stand in the name that are neither at their default nor as usual.
    Where that leaves two alike, all fields stand in it, and then a number.

    >>> from phalanx.aggregation import Krum, NearestNeighborMixing
    >>> labels([Krum(), Krum(2), NearestNeighborMixing(2) >> Krum(2)])
    ['Krum', 'Krum(2)', 'NNM(2) » Krum(2)']
    >>> labels([Krum(2), NearestNeighborMixing(2) >> Krum(2)], usual={"num_byzantine": 2})
    ['Krum', 'NNM » Krum']

    Args:
        things: dataclasses, classes, functions, or `functools.partial` of them.
        usual: values of fields that go without saying here.
    """
    short = [_label(thing, usual or {}) for thing in things]
    whole = [
        _whole(thing) if short.count(label) > 1 else label
        for thing, label in zip(things, short, strict=True)
    ]
    return [
        f"{label} #{whole[: index + 1].count(label)}" if whole.count(label) > 1 else label
        for index, label in enumerate(whole)
    ]


def slug(label: str) -> str:
    """A label as part of a file's name.

    >>> slug("NNM(2) » Krum")
    'nnm-2-krum'
    """
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "x"


def _label(thing: Any, usual: dict[str, Any]) -> str:
    if isinstance(thing, Pipeline):
        parts = [_label(part, usual) for part in (*thing.before, thing.rule)]
        return " » ".join(parts) + (f" seed={thing.seed}" if thing.seed else "")
    if isinstance(thing, partial):
        given = [*map(str, thing.args), *(f"{name}={one}" for name, one in thing.keywords.items())]
        return f"{_label(thing.func, usual)}({', '.join(given)})"
    if not is_dataclass(thing) or isinstance(thing, type):
        return str(getattr(thing, "__name__", thing))
    shown = [
        _field(one, getattr(thing, one.name), first=position == 0)
        for position, one in enumerate(_fields(thing))
        if not _unsaid(one, getattr(thing, one.name), usual)
    ]
    return _short(type(thing)) + (f"({', '.join(shown)})" if shown else "")


def _fields(thing: Any) -> list[Field[Any]]:
    return [one for one in fields(thing) if one.init] if is_dataclass(thing) else []


def _unsaid(one: Field[Any], value: Any, usual: dict[str, Any]) -> bool:
    if one.name in usual:
        return bool(value == usual[one.name])
    if one.default_factory is not MISSING:
        return bool(value == one.default_factory())
    return bool(value == one.default)


def _field(one: Field[Any], value: Any, *, first: bool) -> str:
    number = f"{value:g}" if isinstance(value, float) else f"{value}"
    text = _label(value, {}) if is_dataclass(value) else number
    return text if first else f"{one.name}={text}"


def _short(kind: type) -> str:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", kind.__name__)
    known = kind.__module__.startswith(_KNOWN) and len(words) >= _LONG
    return "".join(word[0] for word in words) if known else kind.__name__


def _whole(thing: Any) -> str:
    """With every field, and where the class comes from."""
    return f"{type(thing).__module__.partition('.')[0]}.{thing!r}"
