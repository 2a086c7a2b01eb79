"""Short names that tell apart what stands in one table."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from phalanx.aggregation import Pipeline

_LONG = 3  # words from which on a name is written by its initials


def labels(things: Sequence[Any], usual: dict[str, Any] | None = None) -> list[str]:
    """One short name for each thing, no two alike.

    Names of three or more words are written by their initials, as the field does. Of the fields
    only those stand in the name that are neither at their default nor as usual. Where that leaves
    two alike, all fields stand in it, and then a number.

    >>> from phalanx.aggregation import Krum, NearestNeighborMixing
    >>> labels([Krum(), Krum(2), NearestNeighborMixing(2) >> Krum(2)])
    ['Krum', 'Krum(2)', 'NNM(2) » Krum(2)']
    >>> labels([Krum(2), NearestNeighborMixing(2) >> Krum(2)], usual={"num_byzantine": 2})
    ['Krum', 'NNM » Krum']

    Args:
        things: dataclasses.
        usual: values of fields that go without saying here.
    """
    found = [_label(thing, usual or {}) for thing in things]
    for rewritten in ([_whole(thing) for thing in things], None):
        counts = Counter(found)
        twice = [index for index, label in enumerate(found) if counts[label] > 1]
        for index in twice:
            if rewritten is not None:
                found[index] = rewritten[index]
            else:
                found[index] += f" #{1 + found[:index].count(found[index])}"
    return found


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
    shown = [
        _field(one, getattr(thing, one.name), first=position == 0)
        for position, one in enumerate(_fields(thing))
        if not _unsaid(one, getattr(thing, one.name), usual)
    ]
    return _short(type(thing).__name__) + (f"({', '.join(shown)})" if shown else "")


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


def _short(name: str) -> str:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", name)
    return "".join(word[0] for word in words) if len(words) >= _LONG else name


def _whole(thing: Any) -> str:
    """With every field, and where the class comes from."""
    return f"{type(thing).__module__.partition('.')[0]}.{thing!r}"
