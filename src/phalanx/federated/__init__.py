"""Federated learning: many clients with data of their own, some of which take part in a round."""

from phalanx.federated.client_training import ClientTraining
from phalanx.federated.fedma import FedMA, FedMARun, fedma
from phalanx.federated.fusion import Fused, fuse
from phalanx.federated.matching import Matching, MatchResult, match_layer
from phalanx.federated.neurons import NeuronLayout
from phalanx.federated.tracing import neuron_layout

__all__ = [
    "ClientTraining",
    "FedMA",
    "FedMARun",
    "Fused",
    "MatchResult",
    "Matching",
    "NeuronLayout",
    "fedma",
    "fuse",
    "match_layer",
    "neuron_layout",
]
