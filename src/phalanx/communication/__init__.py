"""Communication: collectives, links, and tensors as the bytes that are sent."""

from phalanx.communication.collectives import (
    AllGather,
    AllReduce,
    AllToAll,
    Answer,
    Averaged,
    Request,
    Round,
)
from phalanx.communication.link import Link

__all__ = ["AllGather", "AllReduce", "AllToAll", "Answer", "Averaged", "Link", "Request", "Round"]
