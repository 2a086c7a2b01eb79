"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.base import Claim, Findings, Recipe, Scope
from phalanx.reproduce.run import recipes, reproduce

__all__ = [
    "Claim",
    "Findings",
    "Recipe",
    "Scope",
    "recipes",
    "reproduce",
]
