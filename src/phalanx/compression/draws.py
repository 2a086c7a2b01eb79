"""Uniform random numbers for stochastic rounding, as many as a gradient has values."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_COARSE = 2.0**-16  # what sixteen bits resolve
_FINE = {torch.float32: 8, torch.float64: 37}  # further bits of a significand below one


class Uniforms:
    """Draws from [0, 1), piece by piece, each uniform on the multiples of 2**-24 (or 2**-53).

    On the CPU each draw has sixteen bits of its own; those below are shared by all pieces, which
    changes no draw's distribution, and saves half of the time. The bits come from SFC64, whose seed
    comes from the generator. Pieces that fit into the cache are quickest.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        generator: torch.Generator | None,
        device: torch.device | None = None,
    ) -> None:
        """Draws nothing yet, but for a seed.

        Args:
            dtype: float32 or float64.
            generator: where randomness comes from; torch's global one if there is none.
            device: where the draws are needed.
        """
        where = generator.device if generator is not None else torch.device("cpu")
        self._dtype, self._device, self._generator = dtype, device or where, generator
        self._source: np.random.SFC64 | None = None
        if where.type == "cpu":
            self._source = np.random.SFC64(int(torch.randint(2**63 - 1, (1,), generator=generator)))
            fine = int(self._source.random_raw()) >> (64 - _FINE[dtype])
            # The sixteen bits are read as a number with a sign: half of the range is added back.
            shared = 0.5 + fine * _COARSE / 2 ** _FINE[dtype]
            self._shared = torch.tensor(shared, dtype=dtype)  # of no axis: it fits any device

    def take(
        self, count: int, out: Tensor | None = None, top: float = 1.0
    ) -> Float[Tensor, " draws"]:
        """The next draws times `top`, in `out` if it is given and they are on the CPU.

        They are those of one piece if all pieces but the last are of multiples of four.
        """
        if self._source is None:
            where = None if self._generator is None else self._generator.device
            found = torch.rand(count, generator=self._generator, dtype=self._dtype, device=where)
            return found.mul_(top).to(self._device)
        words = np.atleast_1d(self._source.random_raw(-(-count // 4)))
        bits = torch.from_numpy(words.view(np.int16))[:count]
        draws = bits.to(self._dtype) if out is None else out.copy_(bits)
        draws = torch.add(self._shared * top, draws, alpha=_COARSE * top, out=draws)
        return draws.to(self._device)


def uniforms(x: Float[Tensor, "..."], generator: torch.Generator | None) -> Float[Tensor, " draws"]:
    """Draws from [0, 1), as many as `x` has values, in its dtype and on its device."""
    return Uniforms(x.dtype, generator, x.device).take(x.numel())
