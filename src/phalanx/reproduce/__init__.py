"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.base import Claim, Findings, Recipe, Scope
from phalanx.reproduce.detox import Detox
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.learning_from_history import LearningFromHistory
from phalanx.reproduce.resampling import ResamplingAndBucketing
from phalanx.reproduce.run import recipes, reproduce

__all__ = [
    "Claim",
    "Detox",
    "Draco",
    "Findings",
    "LearningFromHistory",
    "Recipe",
    "ResamplingAndBucketing",
    "Scope",
    "recipes",
    "reproduce",
]
