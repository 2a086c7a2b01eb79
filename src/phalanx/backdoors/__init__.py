"""Edge-case backdoors: attacks on rare inputs, defences against them, and audits of both."""

from phalanx.backdoors.backdoor import Backdoor, replacement_boost
from phalanx.backdoors.clients import MaliciousClients, SampledClients, seated
from phalanx.backdoors.edge_cases import EdgeCases, EdgeSet
from phalanx.backdoors.low_density import LowDensity, TailDensity
from phalanx.backdoors.npz_edge_cases import NpzEdgeCases
from phalanx.backdoors.poisoned_steps import PoisonedSteps, projected

__all__ = [
    "Backdoor",
    "EdgeCases",
    "EdgeSet",
    "LowDensity",
    "MaliciousClients",
    "NpzEdgeCases",
    "PoisonedSteps",
    "SampledClients",
    "TailDensity",
    "projected",
    "replacement_boost",
    "seated",
]
