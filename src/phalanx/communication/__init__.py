"""Collectives, links between workers, and the wire format of tensors."""

from phalanx.communication.collectives import (
    AllGather,
    AllReduce,
    AllToAll,
    Answer,
    Averaged,
    ExchangeContext,
    Request,
)
from phalanx.communication.link import Link
from phalanx.communication.link_probe import probe_link
from phalanx.communication.process_group import ProcessGroupCollectives
from phalanx.communication.serialization import SharedTensor
from phalanx.communication.simulation import simulate_collectives

__all__ = [
    "AllGather",
    "AllReduce",
    "AllToAll",
    "Answer",
    "Averaged",
    "ExchangeContext",
    "Link",
    "ProcessGroupCollectives",
    "Request",
    "SharedTensor",
    "probe_link",
    "simulate_collectives",
]
