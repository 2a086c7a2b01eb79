"""What the law files of all rooms share."""

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import TypeVar

Base = TypeVar("Base")


def concrete(room: ModuleType, base: type[Base]) -> list[type[Base]]:
    """The classes in the room's `__all__` that implement `base`; all build without arguments."""
    found = [getattr(room, name) for name in room.__all__]
    return [
        one
        for one in found
        if inspect.isclass(one) and issubclass(one, base) and not inspect.isabstract(one)
    ]


def by_class(cases: Iterable[Base]) -> dict[str, list[Base]]:
    """The cases of each class, by its name: a law has one test a class, with a loop over these."""
    found: dict[str, list[Base]] = {}
    for case in cases:
        found.setdefault(type(case).__name__, []).append(case)
    return found
