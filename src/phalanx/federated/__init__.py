"""Federated learning: many clients with data of their own, some of which take part in a round."""

from phalanx.federated.base import FederatedAlgorithm
from phalanx.federated.client_privacy import ClientPrivacy
from phalanx.federated.client_training import ClientTraining
from phalanx.federated.clients import deal
from phalanx.federated.distillation import Distillation, Distilled, noise_inputs
from phalanx.federated.fed_avg import FedAvg, FedProx
from phalanx.federated.fed_df import FedDF
from phalanx.federated.federate import federate
from phalanx.federated.fedma import FedMARun, fedma
from phalanx.federated.frozen_optimizers import (
    FrozenAdagrad,
    FrozenAdam,
    FrozenMomentum,
    FrozenOptimizer,
    FrozenRMSProp,
    FrozenSGD,
    FrozenTorch,
)
from phalanx.federated.fusion import Fused, fuse
from phalanx.federated.matching import Matching, MatchResult, match_layer
from phalanx.federated.matching_server import FedMA
from phalanx.federated.mime import Mime, MimeLite
from phalanx.federated.neurons import NeuronLayout
from phalanx.federated.prototypes import PrototypeRun, federate_prototypes
from phalanx.federated.scaffold import Scaffold
from phalanx.federated.secure_sum import SecureSum
from phalanx.federated.tracing import neuron_layout

__all__ = [
    "ClientPrivacy",
    "ClientTraining",
    "Distillation",
    "Distilled",
    "FedAvg",
    "FedDF",
    "FedMA",
    "FedMARun",
    "FedProx",
    "FederatedAlgorithm",
    "FrozenAdagrad",
    "FrozenAdam",
    "FrozenMomentum",
    "FrozenOptimizer",
    "FrozenRMSProp",
    "FrozenSGD",
    "FrozenTorch",
    "Fused",
    "MatchResult",
    "Matching",
    "Mime",
    "MimeLite",
    "NeuronLayout",
    "PrototypeRun",
    "Scaffold",
    "SecureSum",
    "deal",
    "federate",
    "federate_prototypes",
    "fedma",
    "fuse",
    "match_layer",
    "neuron_layout",
    "noise_inputs",
]
