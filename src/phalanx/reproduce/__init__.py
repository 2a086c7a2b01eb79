"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.base import Finding, Findings, Recipe
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.run import recipes, reproduce

__all__ = [
    "Draco",
    "Finding",
    "Findings",
    "Recipe",
    "recipes",
    "reproduce",
]
