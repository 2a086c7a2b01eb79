"""Content hashes of configurations, the same in every process."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor


def description(thing: Any) -> Any:
    """A thing as values that JSON can hold: classes and functions by name, objects by field.

    >>> from phalanx.aggregation import Krum
    >>> description(Krum(2))
    {'class': 'phalanx.aggregation.krum.Krum', 'num_byzantine': 2, 'neighbours': 'paper'}

    Raises:
        ValueError: if it has no name that another process could find it by, as a lambda has none.
    """
    if thing is None or isinstance(thing, bool | int | str):
        return thing
    if isinstance(thing, float):
        return float(thing) if thing == thing and abs(thing) != float("inf") else str(thing)
    if isinstance(thing, PurePath):
        return str(thing)
    if isinstance(thing, Tensor | np.ndarray):
        return _bytes(np.ascontiguousarray(thing.numpy() if isinstance(thing, Tensor) else thing))
    if isinstance(thing, partial):
        called = {"call": description(thing.func), "arguments": description(thing.args)}
        return called | description(thing.keywords)
    if is_dataclass(thing) and not isinstance(thing, type):
        held = {one.name: getattr(thing, one.name) for one in fields(thing) if one.init}
        return {"class": _name(type(thing))} | description(held)
    if isinstance(thing, Mapping):
        return {str(key): description(value) for key, value in thing.items()}
    if isinstance(thing, Sequence):
        return [description(one) for one in thing]
    return _name(thing)


def digest(described: Any) -> str:
    """Sixteen hexadecimal digits that stand for a description; the order of keys does not count."""
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _name(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None)
    module = getattr(thing, "__module__", None)
    if name is None or module is None or "<" in name:
        raise ValueError(
            "what is compared must be dataclasses, classes, functions of a module or "
            f"functools.partial of them, so that it can be named and sent to processes, got {thing}"
        )
    return f"{module}.{name}"


def _bytes(array: np.ndarray) -> dict[str, Any]:
    told = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "bytes": told}
