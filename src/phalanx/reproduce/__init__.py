"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.base import Finding, Findings, Plot, Recipe, Table
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.run import recipes, reproduce
from phalanx.reproduce.secure_aggregation import SecureAggregationRecipe

__all__ = [
    "Draco",
    "Finding",
    "Findings",
    "Plot",
    "Recipe",
    "SecureAggregationRecipe",
    "Table",
    "recipes",
    "reproduce",
]
