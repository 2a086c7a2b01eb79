"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.base import Finding, Findings, Plot, Recipe, Table
from phalanx.reproduce.detox import Detox
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.run import recipes, reproduce

__all__ = [
    "Detox",
    "Draco",
    "Finding",
    "Findings",
    "Plot",
    "Recipe",
    "Table",
    "recipes",
    "reproduce",
]
