"""What a tensor is made of: entries, waves or singular vectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.compression.base import Shape, working
from phalanx.compression.bits import (
    check_packed,
    indices_length,
    pack_indices,
    pack_signs,
    packed_length,
    unpack_indices,
    unpack_signs,
)
from phalanx.compression.message import Part, fixed, num_values, require


@dataclass(frozen=True)
class Atoms(ABC):
    """Writes a tensor as a sum of atoms, of which a message holds some."""

    @abstractmethod
    def analyse(self, x: Tensor) -> tuple[Float[Tensor, " atoms"], tuple[Tensor, ...]]:
        """Sizes of the atoms, at least 0, and whatever `pack` needs of them."""

    @abstractmethod
    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """What both sides know of the parts of a message."""

    @abstractmethod
    def pack(
        self, handle: tuple[Tensor, ...], kept: Tensor, sizes: Tensor, tau: Tensor
    ) -> tuple[Tensor, ...]:
        """Those atoms that are kept, each divided by its probability `min(1, size / tau)`."""

    @abstractmethod
    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The sum of the atoms in a message."""

    @abstractmethod
    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Raises a `WireError` unless `unpack` can decode the parts and `pack` might write them."""


@dataclass(frozen=True)
class Basis(Atoms):
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
        dim, small = len(sizes), sizes < tau
        signed = (kept & small).nonzero().flatten()
        exact = (kept & ~small).nonzero().flatten()
        count = torch.tensor([len(signed)], device=tau.device)
        signs = pack_signs(coefficients[signed])
        positions = pack_indices(signed, dim), signs, pack_indices(exact, dim)
        return tau.view(1), count, *positions, coefficients[exact]

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The inverse of the coefficients that were sent, zeros elsewhere."""
        tau, count, signed, signs, exact, values = parts
        dim, number = num_values(shape), int(count)
        coefficients = torch.zeros(dim, dtype=tau.dtype, device=tau.device)
        coefficients[unpack_indices(signed, dim, number)] = (
            unpack_signs(signs, number, tau.dtype) * tau
        )
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
class SingularVectors(Atoms):
    """Matrices of rank one: the tensor as a matrix, along its singular vectors.

    The matrix is `G = sum of (G v_i) v_i^T` for any orthonormal `v_i`, so only these are computed,
    as eigenvectors of the smaller Gram matrix. Nothing is divided by singular values: however small
    and inexact they are, the atoms add up to the matrix, and the sum stays unbiased.
    Wire: two vectors an atom.
    """

    def analyse(self, x: Tensor) -> tuple[Float[Tensor, " atoms"], tuple[Tensor, ...]]:
        """Singular values from the largest on; left and right vectors with the values in them."""
        matrix = _as_matrix(x)
        wide = matrix.shape[0] < matrix.shape[1]
        tall = matrix.T if wide else matrix
        scale = tall.abs().max()
        scaled = tall / torch.where(scale > 0, scale, 1)
        vectors = torch.linalg.eigh(scaled.T @ scaled).eigenvectors.flip(1)
        images = tall @ vectors
        left, right = (vectors, images) if wide else (images, vectors)
        return torch.linalg.vector_norm(images, dim=0), (left.T, right.T)

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Left vectors, right vectors: any number of atoms up to the smaller side."""
        rows, columns = _sides(shape)
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
        rows, columns = _sides(shape)
        left, right = parts[0].view(-1, rows), parts[1].view(-1, columns)
        return (left.T @ right).nan_to_num()  # forged vectors may overflow

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """There are as many left vectors as right ones, and these are whole."""
        rows, columns = _sides(shape)
        number, rest = divmod(parts[0].numel(), rows)
        require(rest == 0, "have whole vectors")
        require(parts[1].numel() == number * columns, "have as many left vectors as right ones")


def _sides(shape: Shape) -> tuple[int, int]:
    """First axis, all others."""
    return (shape[0], num_values(shape[1:])) if shape else (1, 1)


def _as_matrix(x: Tensor) -> Float[Tensor, "rows columns"]:
    return x.reshape(_sides(tuple(x.shape))).to(working(x.dtype))
