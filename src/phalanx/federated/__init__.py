"""Federated learning: many clients with data of their own, some of which take part in a round."""

from phalanx.federated.base import FederatedAlgorithm
from phalanx.federated.clients import deal
from phalanx.federated.fed_avg import FedAvg, FedProx
from phalanx.federated.federate import federate
from phalanx.federated.frozen_optimizers import (
    FrozenAdagrad,
    FrozenAdam,
    FrozenMomentum,
    FrozenOptimizer,
    FrozenRMSProp,
    FrozenSGD,
    FrozenTorch,
)
from phalanx.federated.mime import Mime, MimeLite
from phalanx.federated.scaffold import Scaffold

__all__ = [
    "FedAvg",
    "FedProx",
    "FederatedAlgorithm",
    "FrozenAdagrad",
    "FrozenAdam",
    "FrozenMomentum",
    "FrozenOptimizer",
    "FrozenRMSProp",
    "FrozenSGD",
    "FrozenTorch",
    "Mime",
    "MimeLite",
    "Scaffold",
    "deal",
    "federate",
]
