"""Activation buffers per sample: in memory, on disk, or in few bits."""

import mmap
import shutil
import tempfile
from abc import ABC, abstractmethod
from math import prod
from os import sysconf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.compression import SampleQuantization
from phalanx.pipeline.base import Shape

BufferKind = Literal["memory", "disk", "low_bit"]
_LIMITS = {torch.float16: torch.finfo(torch.float16).max}
_NUMPY = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
_RESIDENT_BYTES = 64 << 20  # of a buffer on disk that may stay in memory between calls


class SampleBuffer(ABC):
    """Activations by sample, zero at first; `num_samples` rows of one shape.

    What `write` returns and `read` gives later are the same bits: the values as they are stored.
    """

    num_bytes: int
    """What all rows take, whether they have been written or not."""

    @abstractmethod
    def read(self, ids: Int64[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """The rows as they are stored, in the dtype of arithmetic."""

    @abstractmethod
    def write(
        self, ids: Int64[Tensor, " batch"], values: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Stores rows, as well as the buffer can; returns what `read` will give."""

    def prefetch(self, ids: Int64[Tensor, " batch"]) -> None:  # noqa: B027  (most need not)
        """Is told which rows will be read next."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The rows themselves, not a copy: save them before the next step."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            ValueError: if it is that of another buffer.
        """


class MemoryBuffer(SampleBuffer):
    """Rows in memory, on the device of the activations, in a dtype of their own."""

    def __init__(
        self,
        num_samples: int,
        shape: Shape,
        *,
        dtype: torch.dtype = torch.float16,
        working: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        # Zeros that nobody has touched take no memory yet.
        self.rows = torch.zeros(num_samples, *shape, dtype=dtype, device=device)
        self.num_bytes = self.rows.numel() * self.rows.element_size()
        self._working = working

    def read(self, ids: Int64[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """A copy of the rows."""
        return self.rows[ids].to(self._working)

    def write(
        self, ids: Int64[Tensor, " batch"], values: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Rounds to the dtype; what is beyond its range is held at its border."""
        stored = rounded(values, self.rows.dtype)
        self.rows[ids] = stored
        return stored.to(self._working)

    def state_dict(self) -> dict[str, Tensor]:
        """The rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies the rows."""
        copy_rows({"rows": self.rows}, state)


class DiskBuffer(SampleBuffer):
    """Rows in a file that is mapped into memory, of which little stays there between calls.

    The system writes back and reads ahead by itself; `prefetch` tells it what comes next. The file
    goes with the buffer, unless a folder was named for it; what is in it after a crash is not what
    a checkpoint says, so a new buffer starts from zeros.
    """

    def __init__(
        self,
        num_samples: int,
        shape: Shape,
        *,
        dtype: torch.dtype = torch.float16,
        working: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        name: str = "activations",
    ) -> None:
        whole = (num_samples, *shape)
        if folder is None:
            with tempfile.TemporaryFile() as file:  # without a name, it goes when the map goes
                self._map = np.memmap(file, _NUMPY[dtype], mode="w+", shape=whole)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.rows"
            self._map = np.memmap(path, _NUMPY[dtype], mode="w+", shape=whole)
        self._row_bytes = prod(shape) * dtype.itemsize
        self.num_bytes = num_samples * self._row_bytes
        self._dtype, self._working, self._device = dtype, working, torch.device(device)
        self._touched = 0

    def read(self, ids: Int64[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """A copy of the rows, on the device of the activations."""
        rows = torch.from_numpy(np.ascontiguousarray(self._map[ids.cpu().numpy()]))
        self._touch(len(ids))
        return rows.to(self._device, self._working)

    def write(
        self, ids: Int64[Tensor, " batch"], values: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Rounds to the dtype; what is beyond its range is held at its border."""
        stored = rounded(values, self._dtype)
        self._map[ids.cpu().numpy()] = stored.cpu().numpy()
        self._touch(len(ids))
        return stored.to(self._working)

    def _touch(self, rows: int) -> None:
        """Lets go of what was touched, once it is much; it stays in the file."""
        self._touched += rows * max(self._row_bytes, mmap.PAGESIZE)
        if self._touched > _RESIDENT_BYTES:
            self._memory.madvise(mmap.MADV_DONTNEED)
            self._touched = 0

    @property
    def _memory(self) -> mmap.mmap:
        memory = self._map._mmap  # type: ignore[attr-defined]
        assert isinstance(memory, mmap.mmap)
        return memory

    def prefetch(self, ids: Int64[Tensor, " batch"]) -> None:
        """Has the system read the rows ahead, without waiting for it."""
        for place in ids.tolist():
            start = place * self._row_bytes
            page = start - start % mmap.PAGESIZE
            length = start + self._row_bytes - page
            self._memory.madvise(mmap.MADV_WILLNEED, page, length)

    def state_dict(self) -> dict[str, Tensor]:
        """The mapped rows: saving them reads the file piece by piece."""
        return {"rows": torch.from_numpy(self._map)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies the rows."""
        copy_rows(self.state_dict(), state)


class LowBitBuffer(SampleBuffer):
    """Rows rounded to a few bits, with a scale for every token, or sample of one axis.

    What is remembered is coarse, so the error of what crosses settles where this rounding is.
    """

    def __init__(
        self,
        num_samples: int,
        shape: Shape,
        *,
        bits: int = 4,
        working: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._codec = SampleQuantization(bits, scale="token")
        # Rows of whole bytes, so that each can be written by itself.
        self._shape, self._size = shape, shape[-1]
        self._padding = -shape[-1] % 8
        padded = (*shape[:-1], shape[-1] + self._padding)
        self._padded, self._working = padded, working
        scales, levels = self._codec.layout((1, *padded), working)
        self.scales = torch.zeros(num_samples, scales.most, dtype=working, device=device)
        self.levels = torch.zeros(num_samples, levels.most, dtype=torch.uint8, device=device)
        self.num_bytes = sum(
            part.numel() * part.element_size() for part in (self.scales, self.levels)
        )

    def read(self, ids: Int64[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """What the levels stand for."""
        return self._values(self.scales[ids], self.levels[ids])

    def write(
        self, ids: Int64[Tensor, " batch"], values: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Rounds to the nearest levels."""
        padded = torch.nn.functional.pad(values.to(self._working), (0, self._padding))
        parts = self._codec.pack(padded.contiguous(), None)
        scales, levels = (part.view(len(ids), -1) for part in parts)
        self.scales[ids], self.levels[ids] = scales, levels
        return self._values(scales, levels)

    def _values(self, scales: Tensor, levels: Tensor) -> Tensor:
        shape = (len(scales), *self._padded)
        flat = self._codec.unpack((scales.view(-1), levels.view(-1)), shape, self._working)
        return flat.view(shape)[..., : self._size]

    def state_dict(self) -> dict[str, Tensor]:
        """Scales and packed levels."""
        return {"scales": self.scales, "levels": self.levels}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies scales and levels."""
        copy_rows(self.state_dict(), state)


def make_buffer(
    kind: BufferKind,
    num_samples: int,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.float16,
    bits: int = 4,
    working: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    name: str = "activations",
) -> SampleBuffer:
    """A buffer of this kind, if there is room for it.

    Args:
        kind: `memory`, `disk` or `low_bit`.
        num_samples: rows.
        shape: of the activations of one sample.
        dtype: of values in memory and on disk: float16, float32 or float64.
        bits: of values in a low-bit buffer.
        working: dtype of arithmetic, which rows are given in.
        device: where activations lie; a buffer on disk copies.
        folder: for a buffer on disk; by default a temporary one.
        name: of its file.

    Raises:
        ValueError: if an argument is unknown, or the rows would not fit.
    """
    if kind not in ("memory", "disk", "low_bit"):
        raise ValueError(f"buffer must be memory, disk or low_bit, got {kind}")
    if dtype not in _NUMPY:
        raise ValueError(f"buffer_dtype must be float16, float32 or float64, got {dtype}")
    if not 2 <= bits <= 8:
        raise ValueError(f"buffer_bits must be from 2 to 8, got {bits}")
    _require_room(kind, buffer_bytes(kind, num_samples, shape, dtype, bits), device, folder)
    if kind == "memory":
        return MemoryBuffer(num_samples, shape, dtype=dtype, working=working, device=device)
    if kind == "low_bit":
        return LowBitBuffer(num_samples, shape, bits=bits, working=working, device=device)
    return DiskBuffer(
        num_samples, shape, dtype=dtype, working=working, device=device, folder=folder, name=name
    )


def buffer_bytes(
    kind: BufferKind,
    num_samples: int,
    shape: Shape,
    dtype: torch.dtype = torch.float16,
    bits: int = 4,
) -> int:
    """What a buffer of this kind takes on each side of a boundary, before there is one.

    >>> buffer_bytes("disk", 20_000, (1024, 1600)) // 10**9
    65
    """
    if kind != "low_bit":
        return num_samples * prod(shape) * dtype.itemsize
    tokens = prod(shape[:-1])
    return num_samples * tokens * (4 + -(-shape[-1] // 8) * bits)


def _require_room(
    kind: BufferKind, needed: int, device: torch.device | str, folder: Path | None
) -> None:
    if kind == "disk":
        above = folder or Path(tempfile.gettempdir())
        while not above.exists():
            above = above.parent
        room, where = shutil.disk_usage(above).free, "disk has free"
    elif torch.device(device).type == "cuda":
        room, where = torch.cuda.mem_get_info(device)[0], "device has free"
    else:
        room, where = sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES"), "machine has"
    if needed > room:
        raise ValueError(
            f"buffer must fit, got {kind} of {needed:,} bytes where the {where} {room:,}; "
            "disk and low_bit are smaller on the device"
        )


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in this dtype, those beyond its range at its border."""
    limit = _LIMITS.get(dtype)
    return (values if limit is None else values.clamp(-limit, limit)).to(dtype)


def copy_rows(own: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Copies tensors of the same names and shapes.

    Raises:
        ValueError: if names, shapes or dtypes differ.
    """
    wanted = {name: (tuple(one.shape), one.dtype) for name, one in own.items()}
    given = {name: (tuple(one.shape), one.dtype) for name, one in state.items()}
    if wanted != given:
        raise ValueError(f"state must be that of the same buffer, {wanted}, got {given}")
    for name, one in own.items():
        one.copy_(state[name])
