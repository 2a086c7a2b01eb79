"""Links between workers: bandwidth, latency, and the time that bytes take."""

import math
from dataclasses import dataclass

_FRAME = 1514 / 1448  # bytes of a full Ethernet frame, and of those the ones that TCP carries


@dataclass(frozen=True)
class Link:
    """A worker's link to the others, full-duplex: how long bytes and hops take on it.

    >>> from phalanx.communication import Link
    >>> round(Link(rate=1e8, latency_s=0.02).seconds(1e6, num_hops=2), 3)
    0.124
    """

    rate: float = 1e8
    """Bits a second, each way."""

    latency_s: float = 1e-4
    """Seconds from one worker to the next."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be finite and above 0, got {self.rate}")
        if not 0 <= self.latency_s < math.inf:
            raise ValueError(f"latency_s must be finite and at least 0, got {self.latency_s}")

    def seconds(self, num_bytes: float | int, num_hops: int) -> float:
        """How long so many bytes, and 4.6 % of headers on top of them, take in so many hops."""
        return num_hops * self.latency_s + 8 * _FRAME * num_bytes / self.rate

    @classmethod
    def measured(
        cls, num_bytes: float | int, num_hops: int, *, small_s: float, large_s: float
    ) -> "Link":
        """The link on which a collective of hardly a byte, and one of many, take what they took.

        Args:
            num_bytes: how many more a worker sends for the second one.
            num_hops: of either.
            small_s: what the first one took.
            large_s: what the second one took.

        Raises:
            ValueError: if the second was no slower than the first.

        >>> link = Link(rate=1e8, latency_s=0.02)
        >>> small, large = link.seconds(0, 2), link.seconds(4e6, 2)
        >>> Link.measured(4e6, 2, small_s=small, large_s=large).latency_s
        0.02
        """
        if not small_s < large_s:
            raise ValueError(f"large_s must be above small_s, got {large_s} and {small_s}")
        return cls(8 * _FRAME * num_bytes / (large_s - small_s), small_s / num_hops)
