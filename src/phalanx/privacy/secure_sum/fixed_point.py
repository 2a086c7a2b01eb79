"""Fixed-point numbers whose sum over all clients cannot wrap around."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.checks import require_at_least, require_finite_above

_FEWEST_BITS = 8  # of one client's numbers; with fewer, a sum says little


@dataclass(frozen=True)
class SumRange:
    """Fixed-point range for sums: multiples of a unit, the finest power of two that fits.

    `num_clients round(limit / unit) < 2^(bits - 1)`: the sum of all clients' numbers is read
    without wrapping around, whatever they are.

    Raises:
        ValueError: if fewer than 8 bits are left for the numbers of one client.

    >>> import torch
    >>> from phalanx.privacy.secure_sum.fixed_point import SumRange
    >>> words, cut = SumRange(num_clients=10, limit=1.0).encode(torch.tensor([0.25, -3.0]))
    >>> SumRange(num_clients=10, limit=1.0).decode(words), cut
    (tensor([ 0.2500, -1.0000], dtype=torch.float64), 1)
    """

    num_clients: int = 10
    """Clients whose numbers are added up."""

    limit: float = 1.0
    """Largest magnitude of a number of one client."""

    bits: int = 32
    """Bits of a word."""

    def __post_init__(self) -> None:
        require_at_least(1, num_clients=self.num_clients)
        require_finite_above(0, limit=self.limit)
        if (room := self.largest).bit_length() < _FEWEST_BITS:
            raise ValueError(
                f"bits must leave {_FEWEST_BITS} bits for the numbers of each of "
                f"{self.num_clients} clients, got {self.bits}, which leave {room.bit_length()}"
            )

    @property
    def largest(self) -> int:
        """Largest word of one client."""
        return ((1 << (self.bits - 1)) - 1) // self.num_clients

    @property
    def unit(self) -> float:
        """What a word of one stands for: a power of two."""
        return 2.0 ** math.ceil(math.log2(self.limit / (self.largest - 0.5)))

    def encode(self, values: Float[Tensor, "..."]) -> tuple[Int[Tensor, "..."], int]:
        """The nearest words, and how many values were cut down to the limit.

        Raises:
            ValueError: if values are not finite.
        """
        if not values.isfinite().all():
            raise ValueError("values must be finite")
        wide = values.double()
        cut = int((wide.abs() > self.limit).sum())
        words = (wide.clamp(-self.limit, self.limit) / self.unit).round_()
        return words.to(torch.int32 if self.bits == 32 else torch.int64), cut

    def decode(self, total: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A sum of words, in float64."""
        return total.double() * self.unit
