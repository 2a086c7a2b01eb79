"""What everybody agrees on before the first round."""

from dataclasses import dataclass

NORM_BITS = 24
"""Fixed-point messages are shorter than two to this, so that no distance wraps around: see
`range_check`."""


@dataclass(frozen=True)
class SecureSetup:
    """The sizes of the messages, and how numbers become whole ones.

    Numbers are multiples of `unit`, kept modulo 2^64. Messages must be shorter than `max_norm`:
    then squared distances fit, even between messages of liars that pass the range check.
    """

    num_workers: int = 10
    """Workers that have an id, from 0 on; not all of them need to take part in a round (n)."""

    dim: int = 1
    """Numbers in a message (d)."""

    fraction_bits: int = 16
    """Bits after the point: the more of them, the finer the numbers and the shorter the messages
    that are allowed."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")
        if self.dim < 0:
            raise ValueError(f"dim must be at least 0, got {self.dim}")
        if not 1 <= self.fraction_bits <= NORM_BITS:
            raise ValueError(
                f"fraction_bits must be from 1 to {NORM_BITS}, got {self.fraction_bits}"
            )

    @property
    def unit(self) -> float:
        """The distance between neighbouring numbers."""
        return 2.0**-self.fraction_bits

    @property
    def max_norm(self) -> float:
        """Messages must have a Euclidean norm below this: 256 with 16 bits after the point."""
        return 2.0 ** (NORM_BITS - self.fraction_bits)

    def has(self, worker: int) -> bool:
        """Whether a worker has this id."""
        return 0 <= worker < self.num_workers
