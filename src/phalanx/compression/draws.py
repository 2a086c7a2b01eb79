"""Uniform draws, as many as a gradient has values: what random rounding costs most time for."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_COARSE = 2.0**-16  # what sixteen bits resolve
_FINE = {torch.float32: 8, torch.float64: 37}  # further bits of a significand below one


class Uniforms:
    """A sequence of draws from [0, 1), each uniform on the multiples of 2**-24 (or 2**-53).

    On the CPU each draw has sixteen bits of its own; those below are shared by the sequence, which
    changes no draw's distribution, and saves half of the time. The bits come from SFC64, whose seed
    comes from the generator.
    """

    def __init__(
        self,
        count: int,
        dtype: torch.dtype,
        generator: torch.Generator | None,
        device: torch.device | None = None,
    ) -> None:
        """Draws.

        Args:
            count: how many.
            dtype: float32 or float64.
            generator: where randomness comes from; torch's global one if there is none.
            device: where the draws are needed.
        """
        where = generator.device if generator is not None else torch.device("cpu")
        self._dtype, self._device = dtype, device or where
        if where.type != "cpu":
            self._found = torch.rand(count, generator=generator, dtype=dtype, device=where)
            self._shared: Tensor | None = None
            return
        seed = int(torch.randint(2**63 - 1, (1,), generator=generator))
        source = np.random.SFC64(seed)
        fine = int(source.random_raw()) >> (64 - _FINE[dtype])
        # The sixteen bits are read as a number with a sign: half of the range is added back.
        shared = 0.5 + fine * _COARSE / 2 ** _FINE[dtype]
        self._shared = torch.tensor(shared, dtype=dtype)  # of no axis: it fits any device
        words = np.atleast_1d(source.random_raw(-(-count // 4)))
        self._found = torch.from_numpy(words.view(np.int16))[:count]

    def part(self, start: int, stop: int, out: Tensor | None = None) -> Float[Tensor, " draws"]:
        """The draws in these places, in `out` if it is given and they are on the CPU."""
        bits = self._found[start:stop]
        if self._shared is None:
            return bits.to(self._device)
        draws = bits.to(self._dtype) if out is None else out.copy_(bits)
        draws = torch.add(self._shared, draws, alpha=_COARSE, out=draws)
        return draws.to(self._device)


def uniforms(x: Float[Tensor, "..."], generator: torch.Generator | None) -> Float[Tensor, " draws"]:
    """Draws from [0, 1), as many as `x` has values, in its dtype and on its device."""
    return Uniforms(x.numel(), x.dtype, generator, x.device).part(0, x.numel())
