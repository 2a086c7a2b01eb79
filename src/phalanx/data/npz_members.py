"""Arrays of a NumPy archive, read without trust in what it says of itself."""

import ast
import math
import os
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

_MAGIC = {b"\x93NUMPY\x01\x00": "<H", b"\x93NUMPY\x02\x00": "<I"}
_LONGEST_HEADER = 4096
_PLAIN = r"[<>|=]?(b1|[iu][1248]|f(2|4|8|16)|U[1-9][0-9]{0,8})"
# What zipfile raises over damaged archives: NotImplementedError is a RuntimeError.
_DAMAGE = (BadZipFile, zlib.error, EOFError, OSError, OverflowError, RuntimeError, struct.error)


def read_npz(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = (), *, max_bytes: int
) -> dict[str, NDArray[Any]]:
    """Arrays of an `.npz` file, by key; nothing is unpickled, and what is not asked for not read.

    Sizes are added up before anything is decompressed; each member is read to its end, so that its
    check sum is compared; and its header must describe exactly the bytes that follow.

    Args:
        path: the file.
        required: keys that must be there.
        optional: keys that are read where they are there.
        max_bytes: how large all these arrays may be together, decompressed.

    Returns:
        Arrays of at least one axis and one number, read-only.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged, larger, no such archive, lacks a key, or an array holds
            anything but numbers and text; the message names file, key and rule.
    """
    with open(path, "rb") as file:
        try:
            archive = ZipFile(file)
            _check_directory(archive, file)
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        except (*_DAMAGE, ValueError) as error:
            raise ValueError(f"{path} must be an .npz archive: {error}") from error
        names = Counter(info.filename.removesuffix(".npy") for info in members)
        missing = [key for key in required if key not in names]
        if missing:
            raise ValueError(
                f"{path} must hold {', '.join(missing)}, got only {', '.join(names) or 'nothing'}"
            )
        wanted = {
            key: info
            for info in members
            if (key := info.filename.removesuffix(".npy")) in (*required, *optional)
        }
        twice = [key for key in wanted if names[key] > 1]
        if twice:
            raise ValueError(f"{path} must hold every array once, got {', '.join(twice)} twice")
        decoded = sum(info.file_size for info in wanted.values())
        if decoded > max_bytes:
            raise ValueError(
                f"{path} must hold at most max_bytes={max_bytes} bytes in "
                f"{', '.join(wanted)}, got {decoded}"
            )
        arrays = {}
        for key, info in wanted.items():
            try:
                if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                    raise BadZipFile("it is neither stored nor deflated")
                arrays[key] = parse_npy(archive.read(info))
            except (*_DAMAGE, ValueError) as error:
                raise ValueError(f"{path}: {key} must be a plain array: {error}") from error
    return arrays


def _check_directory(archive: ZipFile, file: BinaryIO) -> None:
    """Refuses a directory that lost a member, or a member's name, which zipfile would not notice.

    Without it a damaged archive might look like one that has no test arrays.
    """
    file.seek(-22 - len(archive.comment), os.SEEK_END)
    (stated,) = struct.unpack_from("<H", file.read(22), 10)
    if stated not in (len(archive.infolist()), 0xFFFF):
        raise BadZipFile(f"{stated} members are stated, {len(archive.infolist())} found")
    for info in archive.infolist():
        archive.open(info).close()  # compares the name with that before the content


def parse_npy(content: bytes) -> NDArray[Any]:
    """The array in the bytes of an `.npy` file, without a copy.

    Args:
        content: magic string, header and numbers, of format 1.0 or 2.0.

    Raises:
        ValueError: if the header is none, or does not describe exactly what follows.
    """
    length = _MAGIC.get(content[:8])
    if length is None:
        raise ValueError(f"it must begin with the magic string of .npy 1 or 2, got {content[:8]!r}")
    start = 8 + struct.calcsize(length)
    if len(content) < start:
        raise ValueError("its header is cut off")
    end = start + struct.unpack_from(length, content, 8)[0]
    if not start < end <= min(len(content), start + _LONGEST_HEADER):
        raise ValueError(
            f"its header must have at most {_LONGEST_HEADER} bytes, got {end - start} "
            f"with {len(content) - start} bytes left"
        )
    dtype, shape, order = _described(content[start:end])
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        raise ValueError(f"it must have at least one axis and one number, got shape {shape}")
    if size != len(content) - end:
        raise ValueError(
            f"shape {shape} of {dtype} takes {size} bytes, but {len(content) - end} follow"
        )
    if dtype.kind == "U":
        characters = np.frombuffer(
            content, np.dtype("u4").newbyteorder(dtype.byteorder), offset=end
        )
        if characters.max() > sys.maxunicode:
            raise ValueError("its text must hold characters of Unicode")
    return np.frombuffer(content, dtype, offset=end).reshape(shape, order=order)


def _described(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """Kind of numbers, shape and memory order that a header states."""
    try:
        stated = ast.literal_eval(header.decode("ascii").strip(" \n"))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"its header is no dictionary: {error}") from error
    if not isinstance(stated, dict) or set(stated) != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header must state descr, fortran_order and shape, and nothing else")
    descr, fortran, shape = stated["descr"], stated["fortran_order"], stated["shape"]
    if not (isinstance(descr, str) and re.fullmatch(_PLAIN, descr)):
        raise ValueError(f"it must hold real numbers or text, got dtype {descr!r}")
    if not isinstance(fortran, bool):
        raise ValueError(f"its fortran_order must be True or False, got {fortran!r}")
    if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
        raise ValueError(f"its shape must be a tuple of sizes, got {shape!r}")
    if not shape:
        raise ValueError("it must have at least one axis, got a single number")
    return np.dtype(descr), shape, "F" if fortran else "C"
