"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.base import Finding, Findings, Recipe
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.learning_from_history import LearningFromHistory
from phalanx.reproduce.resampling import ResamplingAndBucketing
from phalanx.reproduce.run import recipes, reproduce
from phalanx.reproduce.secure_aggregation import SecureAggregationRecipe

__all__ = [
    "Draco",
    "Finding",
    "Findings",
    "LearningFromHistory",
    "Recipe",
    "ResamplingAndBucketing",
    "SecureAggregationRecipe",
    "recipes",
    "reproduce",
]
