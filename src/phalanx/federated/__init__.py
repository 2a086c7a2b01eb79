"""Federated learning: many clients with data of their own, some of which take part in a round."""

from phalanx.federated.fusion import Fused, fuse
from phalanx.federated.matching import Matching, MatchResult, match_layer
from phalanx.federated.neurons import NeuronLayout
from phalanx.federated.tracing import neuron_layout

__all__ = [
    "Fused",
    "MatchResult",
    "Matching",
    "NeuronLayout",
    "fuse",
    "match_layer",
    "neuron_layout",
]
