"""Content hashes of configurations, the same in every process."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def description(thing: Any, unnamed: Callable[[Any], Any] | None = None) -> Any:
    """A thing as values that JSON can hold: classes and functions by name, objects by field.

    >>> from phalanx.aggregation import Krum
    >>> description(Krum(2))
    {'class': 'phalanx.aggregation.krum.Krum', 'num_byzantine': 2, 'neighbours': 'paper'}

    Args:
        thing: what is described.
        unnamed: describes what has no name that another process could find it by, as a lambda has
            none; see `by_content`.

    Raises:
        ValueError: if there is such a thing, and `unnamed` is not given.
    """
    if thing is None or isinstance(thing, bool | int | str):
        return thing
    if isinstance(thing, float):
        return float(thing) if thing == thing and abs(thing) != float("inf") else str(thing)
    if isinstance(thing, np.generic):
        return description(thing.item(), unnamed)
    if isinstance(thing, PurePath):
        return str(thing)
    if isinstance(thing, Tensor | np.ndarray):
        return _bytes(thing)
    if isinstance(thing, partial):
        called = {
            "call": description(thing.func, unnamed),
            "arguments": description(thing.args, unnamed),
        }
        return called | description(thing.keywords, unnamed)
    if is_dataclass(thing) and not isinstance(thing, type):
        held = {one.name: getattr(thing, one.name) for one in fields(thing) if one.init}
        return {"class": description(type(thing), unnamed)} | description(held, unnamed)
    if isinstance(thing, Mapping):
        return {str(key): description(value, unnamed) for key, value in thing.items()}
    if isinstance(thing, Sequence):
        return [description(one, unnamed) for one in thing]
    if unnamed is not None and isinstance(thing, MethodType):
        return unnamed(thing)  # its object counts, too
    if (name := _name(thing)) is not None:
        return name
    if unnamed is not None:
        return unnamed(thing)
    raise ValueError(
        "what is compared must be dataclasses, classes, functions of a module or "
        f"functools.partial of them, so that it can be named and sent to processes, got {thing}"
    )


_DEEP = 4  # things without a name within one another, which may hold themselves


def by_content(thing: Any, depth: int = 0) -> Any:
    """A thing without a name by what it holds: functions by their code, objects by attribute.

    >>> same = [by_content(lambda x: x + 1)["code"] for _ in range(2)]
    >>> same[0] == same[1] != by_content(lambda x: x + 2)["code"]
    True
    """
    kind = type(thing)
    if depth >= _DEEP:
        return kind.__qualname__
    within = partial(by_content, depth=depth + 1)
    if isinstance(thing, MethodType):
        return {"method": thing.__name__, "of": description(thing.__self__, within)}
    if isinstance(thing, FunctionType):
        held = [one.cell_contents for one in thing.__closure__ or ()]
        return {
            "function": thing.__qualname__,
            "code": digest(_code(thing.__code__)),
            "holds": description([thing.__defaults__, thing.__kwdefaults__, held], within),
        }
    if isinstance(thing, set | frozenset):
        return sorted(map(str, thing))
    if isinstance(thing, nn.Module):
        tensors = description(thing.state_dict(), within)
        return {"object": kind.__qualname__, "modules": _ADDRESS.sub("", str(thing)), **tensors}
    if isinstance(thing, type) or not hasattr(thing, "__dict__"):
        return _ADDRESS.sub("", repr(thing))
    return {"object": kind.__qualname__, **description(thing.__dict__, within)}


def digest(described: Any) -> str:
    """Sixteen hexadecimal digits that stand for a description; the order of keys does not count."""
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """Sixteen hexadecimal digits that stand for the bytes, shapes and types of tensors."""
    return digest([_bytes(one) for one in tensors])


def _name(thing: Any) -> str | None:
    """The name by which another process finds it; None if there is none."""
    name = getattr(thing, "__qualname__", None)
    module = getattr(thing, "__module__", None)
    if not isinstance(name, str) or module is None or "<" in name:
        return None
    return f"{module}.{name}"


def _code(code: CodeType) -> list[Any]:
    """A function's code without the lines that it stands in."""
    constants = [
        _code(one)
        if isinstance(one, CodeType)
        else sorted(map(repr, one))  # whose order differs from process to process
        if isinstance(one, frozenset)
        else repr(one)
        for one in code.co_consts
    ]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _bytes(values: Tensor | np.ndarray) -> dict[str, Any]:
    if isinstance(values, Tensor):
        shape, kind = list(values.shape), str(values.dtype).removeprefix("torch.")
        plain = values.detach().to_dense() if values.layout != torch.strided else values.detach()
        values = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        shape, kind = list(values.shape), str(values.dtype)
    told = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).hexdigest()
    return {"dtype": kind, "shape": shape, "bytes": told}
