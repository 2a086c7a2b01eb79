"""Collectives, links between workers and their emulation, and the wire format of tensors."""

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
from phalanx.communication.slow_links import EmulatedLinks, InterfaceBytes
from phalanx.communication.units import bits_per_second, seconds

__all__ = [
    "AllGather",
    "AllReduce",
    "AllToAll",
    "Answer",
    "Averaged",
    "EmulatedLinks",
    "ExchangeContext",
    "InterfaceBytes",
    "Link",
    "ProcessGroupCollectives",
    "Request",
    "SharedTensor",
    "bits_per_second",
    "probe_link",
    "seconds",
    "simulate_collectives",
]
