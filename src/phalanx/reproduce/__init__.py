"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reporting import Plot, Table
from phalanx.reproduce.base import Finding, Findings, Recipe
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.run import recipes, reproduce

__all__ = [
    "Draco",
    "Finding",
    "Findings",
    "Plot",
    "Recipe",
    "Table",
    "recipes",
    "reproduce",
]
