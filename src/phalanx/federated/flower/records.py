"""Records of Flower's messages: tensors and numbers, of which nothing is ever unpickled."""

import math
import warnings
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from phalanx.communication.serialization import SharedTensor
from phalanx.errors import require

_RAW = "phalanx.raw"  # bytes of the numbers in order, little-endian: NumPy's format has a parser
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def import_flower(module: str = "flwr.app") -> ModuleType:
    """A module of Flower, or of what it brings.

    Raises:
        ImportError: if Flower is not installed.
    """
    try:
        with warnings.catch_warnings():  # of what Flower imports, to itself
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module(module)
    except ImportError as error:
        raise ImportError("Flower is needed: pip install 'phalanx[flower]'") from error


def array_record(tensors: Mapping[str, Tensor]) -> Any:
    """Named tensors as an `ArrayRecord`."""
    flower = import_flower()
    record = flower.ArrayRecord()
    for name, tensor in tensors.items():
        content, dtype, shape = SharedTensor.pack(tensor)
        told = str(dtype).removeprefix("torch.")
        record[name] = flower.Array(told, shape, _RAW, content.tobytes())
    return record


def tensors_of(record: Any) -> dict[str, Tensor]:
    """The tensors of an `ArrayRecord` that a peer sent, in memory of their own.

    Cost: no more memory than the bytes that are here already, whatever shapes are claimed.

    Raises:
        WireError: if the record is none, or an array is not what it says that it is.
    """
    require(isinstance(record, import_flower().ArrayRecord), "hold an ArrayRecord")
    return {name: _tensor(array) for name, array in record.items()}


def _tensor(array: Any) -> Tensor:
    require(array.stype == _RAW, "be of raw bytes")
    require(array.dtype in _DTYPES, "be of a known dtype")
    shape, dtype = tuple(array.shape), _DTYPES[array.dtype]
    require(all(type(size) is int and 0 <= size < 2**48 for size in shape), "have a shape")
    require(len(array.data) == math.prod(shape) * dtype.itemsize, "have the length of its shape")
    if not array.data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(array.data), dtype=dtype).reshape(shape)


def number(record: Any, name: str, kind: type) -> Any:
    """A number of a `MetricRecord` or `ConfigRecord` that a peer sent.

    Raises:
        WireError: if it is not there, or of another kind.
    """
    flower = import_flower()
    known = isinstance(record, flower.MetricRecord | flower.ConfigRecord) and name in record
    require(known and type(record[name]) is kind, f"say {name} as {kind.__name__}")
    return record[name]
