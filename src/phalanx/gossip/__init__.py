"""Decentralised training by gossip averaging with neighbours, without a server."""

from phalanx.gossip.all_reduce_averaging import AllReduceAveraging
from phalanx.gossip.base import Gossip, GossipRound
from phalanx.gossip.choco_sgd import ChocoSGD
from phalanx.gossip.consensus import Consensus, average, spread
from phalanx.gossip.d_psgd import DPSGD
from phalanx.gossip.deep_squeeze import DeepSqueeze
from phalanx.gossip.edges import Edges
from phalanx.gossip.mixing import Mixed, mix
from phalanx.gossip.moniqua import Moniqua
from phalanx.gossip.network import NeighborBroadcast, Network
from phalanx.gossip.parameters import ParameterGossip
from phalanx.gossip.power_gossip import PowerGossip
from phalanx.gossip.process_network import ProcessNetwork
from phalanx.gossip.replicas import Replicas
from phalanx.gossip.simulated_network import SimulatedNetwork
from phalanx.gossip.topology import Topology

__all__ = [
    "DPSGD",
    "AllReduceAveraging",
    "ChocoSGD",
    "Consensus",
    "DeepSqueeze",
    "Edges",
    "Gossip",
    "GossipRound",
    "Mixed",
    "Moniqua",
    "NeighborBroadcast",
    "Network",
    "ParameterGossip",
    "PowerGossip",
    "ProcessNetwork",
    "Replicas",
    "SimulatedNetwork",
    "Topology",
    "average",
    "mix",
    "spread",
]
