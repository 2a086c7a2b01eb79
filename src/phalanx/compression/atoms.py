"""Atomic decompositions of a tensor: entries, waves or singular vectors."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.bits import (
    check_packed,
    empty,
    indices_length,
    pack_indices,
    pack_signs,
    packed_length,
    unpack_indices,
    unpack_signs,
)
from phalanx.compression.base import Shape
from phalanx.compression.eigenvectors import eigenvectors
from phalanx.compression.grid import norms
from phalanx.compression.message import Part, fixed, num_values
from phalanx.compression.sampling import Sampling, probabilities, sample, threshold
from phalanx.errors import require
from phalanx.floats import power_of_two, working


class Bytes(NamedTuple):
    """A budget in bytes.

    Attributes:
        number: that the atoms of a tensor take, on average.
    """

    number: float


Budget = float | Literal["l2", "max"]
"""Atoms that are kept on average; or a norm of the sizes, whose ratio to their sum it is."""
Reshape = Literal["out-first", "paper"]


class Prepared(NamedTuple):
    """A tensor that has been analysed for a budget.

    Attributes:
        spread: the expected squared error, in units of `power_of_two(x)` squared.
        draw: makes the parts of a message.
    """

    spread: Callable[[], float]
    draw: Callable[[Sampling, torch.Generator | None], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Atoms(ABC):
    """Writes a tensor as a sum of atoms, of which a message holds some."""

    needs_bytes: ClassVar[bool] = False
    """Whether a budget has to be in bytes."""

    @abstractmethod
    def prepare(self, x: Tensor, budget: Budget | Bytes) -> Prepared:
        """Analyses a tensor."""

    @abstractmethod
    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """What both sides know of the parts of a message."""

    @property
    def per_tensor_shape(self) -> bool:
        """Whether the atoms depend on the shape of a tensor, not only on how many values it has."""
        return False

    def sparsify(
        self,
        x: Tensor,
        budget: Budget | Bytes,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, ...]:
        """The parts of a message: analyses, draws and packs."""
        return self.prepare(x, budget).draw(sampling, generator)

    def variance(self, x: Tensor, budget: Budget | Bytes) -> float:
        """The expected squared error, exactly."""
        return self.prepare(x, budget).spread() * float(power_of_two(x)) ** 2

    @abstractmethod
    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The sum of the atoms in a message."""

    @abstractmethod
    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Raises a `WireError` unless `unpack` can decode the parts and `pack` might write them."""


@dataclass(frozen=True)
class Decomposition(Atoms):
    """Atoms that are all known, each with its size."""

    @abstractmethod
    def analyse(self, x: Tensor) -> tuple[Float[Tensor, " atoms"], tuple[Tensor, ...]]:
        """Sizes of the atoms, at least 0, and whatever `pack` needs of them."""

    @abstractmethod
    def pack(
        self, handle: tuple[Tensor, ...], kept: Tensor, sizes: Tensor, tau: Tensor
    ) -> tuple[Tensor, ...]:
        """Those atoms that are kept, each divided by its probability `min(1, size / tau)`."""

    def affordable(
        self,
        num_bytes: float,
        shape: Shape,
        dtype: torch.dtype,
        sizes: Float[Tensor, " atoms"] | None = None,
    ) -> float:
        """How many atoms these bytes buy, on average; of these sizes, if that makes a difference.

        Raises:
            ValueError: if it is not known what atoms cost.
        """
        raise ValueError(f"bytes_budget must be None: what atoms cost is not said by {self}")

    def level(self, sizes: Float[Tensor, " atoms"], budget: Budget) -> Float[Tensor, ""]:
        """The size from which on an atom is certain (tau)."""
        if isinstance(budget, str):
            return norms(sizes[None], budget)[0]
        return threshold(sizes, budget)

    def prepare(self, x: Tensor, budget: Budget | Bytes) -> Prepared:
        """All atoms, and the size from which on they are certain."""
        sizes, handle = self.analyse(x)
        if isinstance(budget, Bytes):
            budget = self.affordable(budget.number, tuple(x.shape), x.dtype, sizes)
        tau = self.level(sizes, budget)

        def spread() -> float:
            unit = power_of_two(x).to(sizes)
            return _spread(sizes / unit, tau / unit)

        def draw(sampling: Sampling, generator: torch.Generator | None) -> tuple[Tensor, ...]:
            kept = sample(probabilities(sizes, tau), sampling, generator)
            return self.pack(handle, kept, sizes, tau)

        return Prepared(spread, draw)


@dataclass(frozen=True)
class Basis(Decomposition):
    """Vectors of an orthonormal basis that both sides know: `forward` and `inverse` define it.

    Wire: positions; where the probability is below one a sign, since all such atoms decode to the
    same magnitude, and elsewhere the coefficient.
    """

    @abstractmethod
    def forward(self, flat: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """Coefficients of a vector."""

    @abstractmethod
    def inverse(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """The vector with these coefficients."""

    def analyse(self, x: Tensor) -> tuple[Float[Tensor, " atoms"], tuple[Tensor, ...]]:
        """Magnitudes of the coefficients, and these."""
        coefficients = self.forward(x.reshape(-1).to(working(x.dtype)))
        return coefficients.abs(), (coefficients,)

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Magnitude, number of signs, their positions, signs, positions of values, values."""
        dim = num_values(shape)
        bits = Part(torch.uint8, 0, packed_length(dim, 1))
        wide = working(dtype)
        return fixed(wide, 1), fixed(torch.int64, 1), bits, bits, bits, Part(wide, 0, dim)

    def pack(
        self, handle: tuple[Tensor, ...], kept: Tensor, sizes: Tensor, tau: Tensor
    ) -> tuple[Tensor, ...]:
        """Atoms below `tau` by their signs, the others by their coefficients."""
        (coefficients,) = handle
        chosen = kept.nonzero().flatten()
        return pack_chosen(chosen, coefficients[chosen], tau, len(coefficients))

    def affordable(
        self,
        num_bytes: float,
        shape: Shape,
        dtype: torch.dtype,
        sizes: Float[Tensor, " atoms"] | None = None,
    ) -> float:
        """As many as find place with a sign, and a position in an Elias-Fano code.

        Those that are certain have a value instead of a sign; how many these are follows from the
        sizes.
        """
        dim = num_values(shape)
        found = 8 * num_bytes
        for _ in range(20):  # fewer atoms have positions that are longer
            found = 8 * num_bytes / entry_bits(dim, found)
        return found if sizes is None else _with_values(sizes, num_bytes, found)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The inverse of the coefficients that were sent, zeros elsewhere."""
        tau, count, signed, signs, exact, values = parts
        dim, number = num_values(shape), int(count)
        coefficients = empty(dim, tau).zero_()
        coefficients[unpack_indices(signed, dim, number)] = unpack_signs(signs, number, tau)
        coefficients[unpack_indices(exact, dim, values.numel())] = values
        return self.inverse(coefficients)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Positions are increasing and inside the tensor, with a sign for each of the first."""
        tau, count, signed, signs, exact, values = parts
        dim, number = num_values(shape), int(count)
        require(bool((tau >= 0).all()), "have a magnitude of at least 0")
        require(0 <= number <= dim, "have as many signs as there are values at most")
        require(signs.numel() == packed_length(number, 1), "have as many signs as it states")
        require(signed.numel() == indices_length(dim, number), "have a position for each sign")
        check_packed(signs, 1, number)
        both = torch.cat(
            [unpack_indices(signed, dim, number), unpack_indices(exact, dim, values.numel())]
        )
        require(both.unique().numel() == both.numel(), "have a position once")


@dataclass(frozen=True)
class Entries(Basis):
    """The entries of the tensor."""

    def forward(self, flat: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """The entries."""
        return flat

    def inverse(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """The entries."""
        return coefficients


@dataclass(frozen=True)
class Waves(Basis):
    """Waves, by the discrete Hartley transform: real, orthonormal and its own inverse."""

    def forward(self, flat: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """Real parts of the Fourier transform less the imaginary ones."""
        scale = flat.abs().max()  # sums of large values would overflow
        found: Tensor = torch.fft.fft(flat / torch.where(scale > 0, scale, 1), norm="ortho")
        limits = torch.finfo(flat.dtype)
        waves: Tensor = (found.real - found.imag) * scale
        return waves.clamp(limits.min, limits.max)

    def inverse(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """The same transform."""
        return self.forward(coefficients)


@dataclass(frozen=True)
class SingularVectors(Decomposition):
    """Matrices of rank one: the tensor as a matrix, along its singular vectors.

    The matrix is `G = sum of (G v_i) v_i^T` for any orthonormal `v_i`, so only these are computed,
    as eigenvectors of the smaller Gram matrix. Nothing is divided by singular values: however small
    and inexact they are, the atoms add up to the matrix, and the sum stays unbiased. Nor does it
    matter if the eigenvectors are not found: see `eigenvectors`.
    Wire: two vectors an atom.
    """

    reshape: Reshape = "out-first"
    """Which matrix a tensor is: its first axis against all others; or as ATOMO's authors have it,
    which is tall and thin, quick to decompose, and takes many times more bytes an atom."""

    def __post_init__(self) -> None:
        if self.reshape not in ("out-first", "paper"):
            raise ValueError(f"reshape must be out-first or paper, got {self.reshape}")

    @property
    def per_tensor_shape(self) -> bool:
        """True."""
        return True

    def affordable(
        self,
        num_bytes: float,
        shape: Shape,
        dtype: torch.dtype,
        sizes: Float[Tensor, " atoms"] | None = None,
    ) -> float:
        """Two vectors an atom."""
        return num_bytes / (working(dtype).itemsize * sum(self.sides(shape)))

    def sides(self, shape: Shape) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rest = num_values(shape[1:])
        if self.reshape == "out-first" or not shape:
            return (shape[0], rest) if shape else (1, 1)
        if len(shape) == 1:
            return (shape[0], 1) if shape[0] % 2 else (shape[0] // 2, 2)
        kernel = num_values(shape[2:])
        rows = shape[0] * shape[1]
        if kernel == 1:
            return shape[0], shape[1]
        return (rows, kernel) if rows % 2 else (rows // 2, 2 * kernel)

    def analyse(self, x: Tensor) -> tuple[Float[Tensor, " atoms"], tuple[Tensor, ...]]:
        """Singular values from the largest on; left and right vectors with the values in them."""
        matrix = x.reshape(self.sides(tuple(x.shape))).to(working(x.dtype))
        wide = matrix.shape[0] < matrix.shape[1]
        tall = matrix.T if wide else matrix
        scale = tall.abs().max()
        scaled = tall / torch.where(scale > 0, scale, 1)
        vectors = eigenvectors(scaled.T @ scaled).flip(1)
        images = tall @ vectors
        left, right = (vectors, images) if wide else (images, vectors)
        return norms(images.T, "l2"), (left.T, right.T)

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Left vectors, right vectors: any number of atoms up to the smaller side."""
        rows, columns = self.sides(shape)
        most = min(rows, columns)
        return Part(working(dtype), 0, most * rows), Part(working(dtype), 0, most * columns)

    def pack(
        self, handle: tuple[Tensor, ...], kept: Tensor, sizes: Tensor, tau: Tensor
    ) -> tuple[Tensor, ...]:
        """The left vectors are divided by the probabilities."""
        left, right = (vectors[kept] for vectors in handle)
        factors = torch.maximum(tau / sizes[kept], tau.new_ones(()))
        return (left * factors[:, None]).reshape(-1), right.reshape(-1)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The sum of the outer products."""
        rows, columns = self.sides(shape)
        left, right = parts[0].view(-1, rows), parts[1].view(-1, columns)
        return (left.T @ right).nan_to_num()  # forged vectors may overflow

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """There are as many left vectors as right ones, and these are whole."""
        rows, columns = self.sides(shape)
        number, rest = divmod(parts[0].numel(), rows)
        require(rest == 0, "have whole vectors")
        require(parts[1].numel() == number * columns, "have as many left vectors as right ones")


def _spread(sizes: Float[Tensor, " atoms"], tau: Float[Tensor, ""]) -> float:
    """`sum of size^2 (1 / p - 1)`, which is `sum of size (tau - size)` over sizes below `tau`."""
    wide = sizes.double()
    return float((wide * (tau.double() - wide).clamp_(min=0)).sum())


def _with_values(sizes: Float[Tensor, " atoms"], num_bytes: float, most: float) -> float:
    """How many entries these bytes buy, if the certain ones are sent with their values.

    Bisects for tau: the bytes fall as it grows.
    """
    dim, scale = len(sizes), sizes.max()
    tau = threshold(sizes, most)
    if not scale or (tau and not bool((sizes >= tau).any())):
        return most
    wide = sizes / scale
    value_bits = 8 * sizes.dtype.itemsize - 1  # in place of a sign

    def kept(tau: float) -> tuple[float, float]:
        """Entries, and bits that they take."""
        certain = int((wide >= tau).sum())
        number = float((wide / tau).clamp_(max=1).sum(dtype=torch.float64))
        exact = certain * (value_bits + entry_bits(dim, float(certain)))
        return number, exact + (number - certain) * entry_bits(dim, float(number - certain))

    low = float(tau / scale) or float(wide[wide > 0].min())
    if kept(low)[1] <= 8 * num_bytes:
        return kept(low)[0]
    high = 1.0
    while kept(high)[1] > 8 * num_bytes:
        high *= 16
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle)[1] > 8 * num_bytes else (low, middle)
    return kept(high)[0]


def entry_bits(dim: int, count: float) -> float:
    """Bits of an entry's sign and position, if about so many of `dim` are sent."""
    return 3 + max(0.0, math.log2(dim / count)) if 0 < count < dim else 2.0


def pack_chosen(
    chosen: Int64[Tensor, " chosen"],
    values: Float[Tensor, " chosen"],
    tau: Float[Tensor, ""],
    dim: int,
) -> tuple[Tensor, ...]:
    """Those of `dim` coefficients that are chosen: below `tau` by their signs, others by values."""
    small = values.abs() < tau
    exact, large = chosen[:0], values[:0]
    if not small.all():
        exact, large = chosen[~small], values[~small]
        chosen, values = chosen[small], values[small]
    count = torch.tensor([len(chosen)], device=chosen.device)
    positions = pack_indices(chosen, dim), pack_signs(values), pack_indices(exact, dim)
    return tau.view(1), count, *positions, large
