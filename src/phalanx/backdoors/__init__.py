"""Edge-case backdoors: attacks on rare inputs, defences against them, and audits of both."""

from phalanx.backdoors.audit import Audit, Finding, audit_backdoor
from phalanx.backdoors.backdoor import Backdoor, replacement_boost
from phalanx.backdoors.defences import default_defences
from phalanx.backdoors.drill import Attacker, Defence, Federation, backdoor_run
from phalanx.backdoors.edge_cases import EdgeCases, EdgeSet
from phalanx.backdoors.harm import harm_run
from phalanx.backdoors.low_density import LowDensity, TailDensity
from phalanx.backdoors.npz_edge_cases import NpzEdgeCases
from phalanx.backdoors.poisoned_steps import PoisonedSteps, projected
from phalanx.backdoors.search import (
    AttackBudget,
    confirming_cells,
    drill_cells,
    harm_cells,
    search_cells,
    worst_attacker,
)

__all__ = [
    "AttackBudget",
    "Attacker",
    "Audit",
    "Backdoor",
    "Defence",
    "EdgeCases",
    "EdgeSet",
    "Federation",
    "Finding",
    "LowDensity",
    "NpzEdgeCases",
    "PoisonedSteps",
    "TailDensity",
    "audit_backdoor",
    "backdoor_run",
    "confirming_cells",
    "default_defences",
    "drill_cells",
    "harm_cells",
    "harm_run",
    "projected",
    "replacement_boost",
    "search_cells",
    "worst_attacker",
]
