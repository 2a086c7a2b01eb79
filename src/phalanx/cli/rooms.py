"""Where the command line finds algorithms by name."""

import inspect
from functools import cache
from types import ModuleType

from phalanx import (
    aggregation,
    attacks,
    coding,
    compression,
    computations,
    data,
    federated,
    gossip,
    models,
    ordering,
    pipeline,
    privacy,
    stragglers,
    training,
    transforms,
)
from phalanx.training import Callback

ROOMS = (
    coding,
    aggregation,
    ordering,
    computations,
    transforms,
    compression,
    attacks,
    stragglers,
    training,
    federated,
    data,
    models,
    privacy,
    gossip,
    pipeline,
)
"""Where the command line looks for names: what their `__all__` lists."""


@cache
def algorithms(module: ModuleType) -> tuple[type, ...]:
    """The concrete classes of a room: what an option can name."""
    found = (getattr(module, name) for name in module.__all__)
    options = [cls for cls in found if inspect.isclass(cls) and not inspect.isabstract(cls)]
    return tuple(cls for cls in options if _implements(cls))


def _implements(cls: type) -> bool:
    """Whether it implements an abstract class, is a callback, or a module of torch."""
    return any(
        inspect.isabstract(base) or base is Callback or base.__module__.startswith("torch.nn")
        for base in cls.__mro__[1:]
    )
