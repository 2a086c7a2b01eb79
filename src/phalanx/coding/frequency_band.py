"""Algebra of a cyclic code: its weights, their band of frequencies, and the parity checks.

Place `length` workers on a circle. A code is a band of `length - 2 s` consecutive frequencies:
honest messages, read around the circle, hold no other frequency, so whatever shows up at the `2 s`
parity frequencies is the doing of Byzantine workers.

* `centered`: the band lies symmetrically around zero. All weights are real, and well conditioned.
  For a band of even size (that is, for an even number of workers) the symmetric frequencies are
  half-integers (the functions change sign once around the circle); the constant is then not in the
  band, so the columns are scaled by the lowest half-integer wave, which is positive on every
  partition, and the sum of all partitions stays decodable.
* `published`: the band starts at zero, as in the paper. The weights are complex and reach 1e5 at 45
  workers.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

Band = Literal["centered", "published"]


@dataclass(frozen=True, eq=False)
class CyclicAlgebra:
    """The matrices of one cyclic code, in float64 or complex128.

    Attributes:
        weights: `(length, length)`, what worker i multiplies the gradient of partition k by; zero
            unless `(k - i) mod length <= 2 s`.
        basis: `(length, length - 2 s)`, an orthonormal basis of the band that holds the columns of
            `weights`.
        parity: `(2 s, length)`, orthonormal rows that vanish on the band.
        target: `(length - 2 s,)`; any v with `v @ basis = target` gives `v @ weights = 1`.
        nodes: `(length,)`, the points of the unit circle at which an error locator vanishes.
        key: arguments of `cyclic_algebra`.
    """

    weights: Float[Tensor, "length length"] | Complex[Tensor, "length length"]
    basis: Float[Tensor, "length band"] | Complex[Tensor, "length band"]
    parity: Complex[Tensor, "parity length"]
    target: Float[Tensor, " band"] | Complex[Tensor, " band"]
    nodes: Complex[Tensor, " length"]
    key: tuple[int, int, Band]

    @cached_property
    def gain(self) -> float:
        """The most by which encoding lengthens: messages are at most that, times the gradients."""
        return float(torch.linalg.matrix_norm(self.weights, 2))

    def combination(self, trusted: list[int]) -> Tensor:
        """The shortest v over the trusted workers with `v @ weights[trusted] = 1`."""
        inverse: Tensor = torch.linalg.pinv(self.basis[trusted].T)
        return inverse @ self.target


@lru_cache(maxsize=64)
def cyclic_algebra(length: int, num_byzantine: int, band: Band) -> CyclicAlgebra:
    """Builds the matrices; O(length^3) time, once per shape of code.

    Source: Chen et al., "DRACO", ICML 2018, section 4 (the published band); the centred band and
    the closed form of its weights are derived for this package (docs, "Why the band is centred").
    """
    build = centered_band if band == "centered" else _published
    weights, basis, start = build(length, 2 * num_byzantine)
    worker = torch.arange(length, dtype=torch.float64)
    outside = start + length - 2 * num_byzantine + torch.arange(2 * num_byzantine)
    parity = _waves(-outside, length).T / math.sqrt(length)
    nodes = torch.exp(-2j * math.pi * worker / length)
    ones = torch.ones(length, dtype=weights.dtype)
    target = torch.linalg.pinv(weights.T, rtol=1e-10) @ ones @ basis
    key = (length, num_byzantine, band)
    return CyclicAlgebra(weights, basis, parity, target, nodes, key)


def centered_band(length: int, num_checks: int, max_waves: int = 1) -> tuple[Tensor, Tensor, float]:
    """Weights in closed form: the real wave of lowest degree that vanishes on all other workers.

    Args:
        length: workers on the circle.
        num_checks: frequencies outside of the band; each worker holds one partition more. Twice the
            Byzantine workers, or the stragglers, that are tolerated.
        max_waves: half-integer waves that scale the columns of a band of even size: the lowest, or
            the first few of a square wave. These are flatter: with four, rounding is amplified
            about a third as much when neighbours are missing.

    Returns:
        `(length, length)` weights; a basis of the band, `(length, length - num_checks)`; and the
        lowest frequency of the band.
    """
    size = length - num_checks
    offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    zeros = torch.arange(num_checks + 1, length)
    weights = (2 * torch.sin(math.pi * (offset[..., None] - zeros).double() / length)).prod(dim=-1)
    weights = torch.where(offset % length <= num_checks, weights, 0.0)
    weights = weights / weights[0].sum()
    if size % 2 == 0:
        scale = _square_wave(length, min(max_waves, size // 2))
        weights = weights * scale.mean() / scale
    start = -(size - 1) / 2
    frequencies = start + torch.arange(size).double()
    waves = _waves(frequencies[frequencies >= 0], length)
    # Real and imaginary parts of e^{ift} span the same space as e^{ift} and e^{-ift}.
    real = torch.cat([waves.real, waves.imag[:, frequencies[frequencies >= 0] > 0]], dim=1)
    return weights, real / real.norm(dim=0), start


def _square_wave(length: int, num_waves: int) -> Tensor:
    """The first waves of one that is constant but for its sign, damped by Lanczos's factors.

    Positive once around the circle, as every one of its partial sums is (Fejer and Jackson).
    """
    angle = math.pi * (torch.arange(length).double() + 0.5) / length
    number = torch.arange(num_waves).double()
    odd = 2 * number + 1
    return (torch.sin(angle[:, None] * odd) / odd * torch.sinc(number / num_waves)).sum(dim=1)


def _published(length: int, num_checks: int) -> tuple[Tensor, Tensor, float]:
    """Weights of the paper: column k is the wave of the band that vanishes where k is not held."""
    basis = _waves(torch.arange(length - num_checks), length) / math.sqrt(length)
    worker = torch.arange(length)
    columns = []
    for partition in range(length):
        absent = (partition - worker) % length > num_checks
        rest = torch.linalg.solve(basis[absent, 1:], -basis[absent, 0])
        columns.append(torch.where(absent, 0.0, basis[:, 0] + basis[:, 1:] @ rest))
    return torch.stack(columns, dim=1), basis, 0.0


def _waves(frequencies: Tensor, length: int) -> Tensor:
    """Columns `exp(2 pi i f t / length)` over the workers t, one per frequency f."""
    worker = torch.arange(length, dtype=torch.float64)
    return torch.exp(2j * math.pi * worker[:, None] * frequencies.double() / length)
