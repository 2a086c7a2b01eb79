"""Serialisation of values with tensors, to workers and back without copies."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from phalanx.communication.serialization import SharedTensor


def pack(value: Any) -> Any:
    """The value, its dense tensors packed: those in dataclasses, tuples, lists and mappings.

    A tensor that is in it twice is packed once.
    """
    done: dict[int, Any] = {}

    def packed(one: Any) -> Any:
        if not isinstance(one, Tensor) or one.layout != torch.strided:
            return one
        return done.setdefault(id(one), SharedTensor.pack(one))

    return _mapped(value, packed)


def unpack(value: Any) -> Any:
    """The value that was packed; its tensors are lent, and never to be written to."""
    return _mapped(value, lambda one: one.unpack() if isinstance(one, SharedTensor) else one)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with its parts changed; what has no changed part is given back as it is."""
    changed = change(value)
    if changed is not value:
        return changed
    if isinstance(value, tuple | list):
        parts = [_mapped(one, change) for one in value]
        if all(one is other for one, other in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for one in fields(value):
            object.__setattr__(made, one.name, _mapped(getattr(value, one.name), change))
        return made
    return value
